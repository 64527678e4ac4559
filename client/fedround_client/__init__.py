"""The client of fedround, a coordination server for federated learning.

>>> with fedround_client.connect() as client:  # doctest: +SKIP
...     client.participate(train)
"""
# ruff: noqa: F403 - `make errors` keeps the list of reasons

from fedround.v1.aggregation_pb2 import (
    Ensemble,
    EnsembleMember,
    FedAvg,
    FedDc,
    FedProx,
    McDropout,
    NoUncertainty,
    Swag,
)
from fedround_client import errors
from fedround_client.audit_chain import AuditBroken, AuditEntry, AuditHead, AuditReport
from fedround_client.client import Client, connect
from fedround_client.errors.client_side import *
from fedround_client.errors.family import *
from fedround_client.errors.reason import *
from fedround_client.inference import Prediction
from fedround_client.options import Selection
from fedround_client.participant import Participation, Round, Update
from fedround_client.swag_moments import Moments
from fedround_client.tensors import TensorError, from_safetensors, to_safetensors

__all__ = [
    "AuditBroken",
    "AuditEntry",
    "AuditHead",
    "AuditReport",
    "Client",
    "Ensemble",
    "EnsembleMember",
    "FedAvg",
    "FedDc",
    "FedProx",
    "McDropout",
    "Moments",
    "NoUncertainty",
    "Participation",
    "Prediction",
    "Round",
    "Selection",
    "Swag",
    "TensorError",
    "Update",
    "connect",
    "from_safetensors",
    "to_safetensors",
]
__all__ += errors.client_side.__all__
__all__ += errors.family.__all__
__all__ += errors.reason.__all__
