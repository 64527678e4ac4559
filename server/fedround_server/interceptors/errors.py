"""Turns domain errors into statuses with details; anything else becomes INTERNAL, with an id and without its text."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from fedround_server.domain import errors
from fedround_server.domain.audit import acting
from fedround_server.domain.errors import FedroundError
from fedround_server.domain.token import redact
from fedround_server.interceptors.wrapping import Call, ContextInterceptor

log = structlog.get_logger("fedround.error")
DOMAIN = "fedround"
# A status travels as metadata, which gRPC limits to 8 KiB: the message twice or thrice, and not all of it is ASCII.
MAX_MESSAGE_BYTES = 1200

CODES: Mapping[type[FedroundError], grpc.StatusCode] = {
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}


class ErrorInterceptor(ContextInterceptor):
    """Around everything that may raise a domain error."""

    def __init__(self, max_message: int, refused: Callable[[str, str, FedroundError], None]) -> None:
        """Begins with nothing refused.

        Args:
            max_message: What a message carries, in bytes: gRPC refuses more than that without a reason.
            refused: Told the method, the peer and the error of each refusal; must not take time.
        """
        self._max_message = max_message
        self._refused = refused

    @asynccontextmanager
    async def around(self, method: str, context: Call) -> AsyncIterator[None]:
        """Aborts the call with the status that an error stands for."""
        # What another call left here is not this one's. And once a call has ended, peer() reads freed memory.
        acting.set("")
        peer = context.peer()
        try:
            yield
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except FedroundError as error:
            self._refused(method, peer, error)
            await _abort(context, to_status(error))
        except Exception:
            error_id = str(uuid.uuid4())
            log.exception("unexpected", method=method, error_id=error_id)
            await _abort(context, _internal(error_id))

    def check(self, method: str, response: Message) -> None:
        """Refuses what does not fit into a message."""
        size = response.ByteSize()
        if size > self._max_message:
            log.error("answer too large", method=method, size=size)
            raise errors.AnswerTooLarge(size, self._max_message)


def code_of(error: FedroundError) -> grpc.StatusCode:
    """Returns the status code of an error's family."""
    return next(code for family, code in CODES.items() if isinstance(error, family))


def to_status(error: FedroundError) -> status_pb2.Status:
    """Makes the status of a domain error, with details."""
    message = _told(error.message)
    facts = {name: redact(value) for name, value in error.metadata.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)]
    if isinstance(error, errors.InvalidArgument) and (field := getattr(error, "field", None)):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=_told(getattr(error, "description", ""))
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    elif isinstance(error, errors.NotFound):
        details.append(
            error_details_pb2.ResourceInfo(resource_type=error.resource_type, resource_name=redact(error.resource_id))
        )
    elif isinstance(error, errors.FailedPrecondition):
        unmet = error_details_pb2.PreconditionFailure.Violation(type=error.reason, description=message)
        details.append(error_details_pb2.PreconditionFailure(violations=[unmet]))
    elif isinstance(error, errors.ResourceExhausted):
        exceeded = error_details_pb2.QuotaFailure.Violation(subject=error.reason, description=message)
        details.append(error_details_pb2.QuotaFailure(violations=[exceeded]))
    if error.retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(timedelta(seconds=error.retry_seconds))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(code_of(error), message, details)


def _told(message: str) -> str:
    """Returns what may be told: without tokens, which callers type into any field, and in so many bytes."""
    message = redact(message)
    encoded = message.encode()
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return message
    return encoded[:MAX_MESSAGE_BYTES].decode(errors="ignore") + " ..."


def _internal(error_id: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id})
    return _status(
        grpc.StatusCode.INTERNAL, f"something went wrong; the server's log has more under the id {error_id}", [info]
    )


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


async def _abort(context: Call, status: status_pb2.Status) -> None:
    # Not abort_with_status: this way the context knows the code, for logs and traces.
    rich = rpc_status.to_status(status)
    await context.abort(rich.code, rich.details, rich.trailing_metadata)
