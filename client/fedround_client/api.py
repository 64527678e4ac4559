"""All public names of the SDK; use them as `fedround_client.NAME`."""
# ruff: noqa: F403 - `make errors` keeps the list of reasons

from fedround.v1.aggregation_pb2 import (
    Adagrad,
    Adam,
    AdaptiveClipping,
    Bucketing,
    Buffering,
    Bulyan,
    CenteredClipping,
    DifferentialPrivacy,
    Ensemble,
    EnsembleMember,
    FedAvg,
    FedDc,
    FedDyn,
    FedNova,
    FedProx,
    FixedClipping,
    FlTrust,
    FreezeA,
    GeometricMedian,
    Krum,
    LoraStack,
    LoraSvd,
    McDropout,
    Median,
    MultiKrum,
    NearestNeighbor,
    NoUncertainty,
    PartialSum,
    QFedAvg,
    Scaffold,
    Sgd,
    Swag,
    TrimmedMean,
)
from fedround.v1.config_pb2 import CosineSchedule, ExponentialSchedule, Step, StepSchedule
from fedround.v1.training_pb2 import Cohort, RoundPolicy
from fedround_client import errors, lora
from fedround_client.aggregation import FedAdagrad, FedAdam, FedAvgM, FedYogi, aggregate
from fedround_client.audit_chain import AuditReport
from fedround_client.audit_entry import AuditBroken, AuditEntry, AuditHead
from fedround_client.buffering import FedAsync, FedBuff
from fedround_client.client import Client, connect
from fedround_client.errors.client_side import *
from fedround_client.errors.family import *
from fedround_client.errors.reason import *
from fedround_client.inference import Prediction
from fedround_client.options import Selection
from fedround_client.participation import Participation, Round, Update
from fedround_client.prefixes import strip_prefix
from fedround_client.relay_round import RelayOptions
from fedround_client.simulation.functions import SimulationFailed
from fedround_client.simulation.run import Simulation, simulate
from fedround_client.swag_moments import Moments
from fedround_client.tensor_types import TensorError
from fedround_client.tensors import from_safetensors, to_safetensors
from fedround_client.transport import TensorPrecision

__all__ = [
    "Adagrad",
    "Adam",
    "AdaptiveClipping",
    "AuditBroken",
    "AuditEntry",
    "AuditHead",
    "AuditReport",
    "Bucketing",
    "Buffering",
    "Bulyan",
    "CenteredClipping",
    "Client",
    "Cohort",
    "CosineSchedule",
    "DifferentialPrivacy",
    "Ensemble",
    "EnsembleMember",
    "ExponentialSchedule",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDc",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedYogi",
    "FixedClipping",
    "FlTrust",
    "FreezeA",
    "GeometricMedian",
    "Krum",
    "LoraStack",
    "LoraSvd",
    "McDropout",
    "Median",
    "Moments",
    "MultiKrum",
    "NearestNeighbor",
    "NoUncertainty",
    "PartialSum",
    "Participation",
    "Prediction",
    "QFedAvg",
    "RelayOptions",
    "Round",
    "RoundPolicy",
    "Scaffold",
    "Selection",
    "Sgd",
    "Simulation",
    "SimulationFailed",
    "Step",
    "StepSchedule",
    "Swag",
    "TensorError",
    "TensorPrecision",
    "TrimmedMean",
    "Update",
    "aggregate",
    "connect",
    "from_safetensors",
    "lora",
    "simulate",
    "strip_prefix",
    "to_safetensors",
]
__all__ += errors.client_side.__all__
__all__ += errors.family.__all__
__all__ += errors.reason.__all__
