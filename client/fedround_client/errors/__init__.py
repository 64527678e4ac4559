"""The exceptions of the SDK: one class per status code, and below it one per reason.

`except NotFound` catches every unknown id, `except TrainingNotFound` only a training's.
"""
# ruff: noqa: F403 - `make errors` keeps the list of reasons

from fedround_client.errors import client_side, family, reason
from fedround_client.errors.client_side import *
from fedround_client.errors.convert import from_event, from_rpc_error
from fedround_client.errors.family import *
from fedround_client.errors.reason import *

__all__ = ["from_event", "from_rpc_error"]
__all__ += client_side.__all__
__all__ += family.__all__
__all__ += reason.__all__
