"""Makes exceptions of failed calls and of events."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fedround.v1.event_pb2 import Event
from fedround_client.errors.client_side import ResponseInvalid, TrainingFailed, TrainingRemoved
from fedround_client.errors.family import FedroundError
from fedround_client.errors.http_answer import from_http_answer

DOMAIN = "fedround"

REPLICA = "fedround-replica"
"""The trailing metadata in which a server gives its name with an error."""

_UNDECODABLE = "Exception deserializing response!"
"""The details that grpc itself gives to a call whose response its deserializer rejects."""


def from_rpc_error(error: grpc.RpcError, address: str) -> FedroundError:
    """Returns the exception for a failed call.

    Args:
        error: The error that grpc raised, or a call that failed.
        address: The server's address, for the message when the server cannot be reached.

    Returns:
        One of the class of the reason if the status has an ErrorInfo of fedround, else of the class of the code.
    """
    failure = _from_status(error, address)
    failure.replica = _replica(error)
    return failure


def _from_status(error: grpc.RpcError, address: str) -> FedroundError:
    code, message = error.code(), error.details() or ""
    info, violations, retry_after = _details(error)
    if info is not None:
        kind = FedroundError._by_reason.get(info.reason) or FedroundError._by_code.get(code, FedroundError)
        return kind(code, info.reason, message, dict(info.metadata), violations, retry_after)
    answer = from_http_answer(message, address)
    if answer is not None:
        return answer
    if code is grpc.StatusCode.INTERNAL and message == _UNDECODABLE:
        text = f"The answer of the server at {address} cannot be decoded. Is it a fedround server, of this version?"
        return ResponseInvalid(code, "RESPONSE_INVALID", text)
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"The server at {address} cannot be reached ({message}). Is `fedround serve` running there?"
    kind = FedroundError._by_code.get(code, FedroundError)
    return kind(code, code.name, message or "The server gave no explanation.", None, violations, retry_after)


def _replica(error: grpc.RpcError) -> str:
    """Returns the name of the replica that has answered with an error; empty if it gave none."""
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    return next((str(value) for name, value in metadata if name == REPLICA), "")


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, dict[str, str], float | None]:
    found: error_details_pb2.ErrorInfo | None = None
    violations: dict[str, str] = {}
    retry_after: float | None = None
    # Details that are malformed, or contradict the status, are not from fedround: from a proxy, for example.
    with suppress(ValueError, OverflowError, DecodeError):
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                found = info
            elif detail.Unpack(request):
                violations |= {violation.field: violation.description for violation in request.field_violations}
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return found, violations, retry_after


def from_event(event: Event) -> FedroundError | None:
    """Returns the exception for callers that wait for a training; None if the event does not end it with an error."""
    kind = event.WhichOneof("payload")
    if kind == "training_failed":
        failed = event.training_failed
        return TrainingFailed(
            grpc.StatusCode.ABORTED, failed.reason, failed.message, {"training_id": event.training_id}
        )
    if kind == "training_removed":
        message = f"Training {event.training_id} was removed."
        return TrainingRemoved(grpc.StatusCode.ABORTED, "TRAINING_REMOVED", message, {"training_id": event.training_id})
    return None
