"""Makes exceptions of what the server answered or told."""

from __future__ import annotations

from contextlib import suppress

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fedround.v1.event_pb2 import Event
from fedround_client.errors.family import FedroundError
from fedround_client.errors.reason import TrainingFailed, TrainingRemoved

DOMAIN = "fedround"


def from_rpc_error(error: grpc.RpcError, address: str) -> FedroundError:
    """Makes the typed exception of a failed call.

    Args:
        error: What grpc raised; also a call.
        address: The server's address, for the text of errors that the server itself could not word.

    Returns:
        The class of the reason if the status has an ErrorInfo of ours, else the class of the code.
    """
    code, message = error.code(), error.details() or ""
    info, violations, retry_after = _details(error)
    if info is not None:
        kind = FedroundError._by_reason.get(info.reason) or FedroundError._by_code.get(code, FedroundError)
        return kind(code, info.reason, message, dict(info.metadata), violations, retry_after)
    if code is grpc.StatusCode.UNAVAILABLE:
        plain = " If it speaks no TLS: --insecure, or insecure=True." if "handshake" in message.lower() else ""
        message = f"The server at {address} cannot be reached ({message}). Is `fedround serve` running there?{plain}"
    kind = FedroundError._by_code.get(code, FedroundError)
    return kind(code, code.name, message or "The server gave no explanation.", None, violations, retry_after)


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, dict[str, str], float | None]:
    found: error_details_pb2.ErrorInfo | None = None
    violations: dict[str, str] = {}
    retry_after: float | None = None
    # Details that are malformed, or contradict the status they came with, are not ours: a proxy's, say.
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
    """Makes the exception that an event means for whoever waits for the training; None if it goes on or is finished."""
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
