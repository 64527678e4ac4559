"""Turns domain errors into statuses with details; other exceptions become INTERNAL, without their text."""

import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
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
# A status travels as metadata, which gRPC limits to 8 KiB: it contains the message two or three times, percent-encoded.
MAX_MESSAGE_BYTES = 1200
REPLICA = "fedround-replica"
"""The trailing metadata with the name of the server."""

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
    """Turns the errors of the interceptors and handlers inside of it into statuses.

    Attributes:
        replica: Returns the name of this server, which authenticated callers get with each error; empty for none.
    """

    def __init__(self, max_message: int, on_error: Callable[[str, str, FedroundError], None]) -> None:
        """Makes the interceptor.

        Args:
            max_message: The size limit of a message in bytes: gRPC itself rejects larger ones without a reason.
            on_error: Called with the method, the peer and the error of each call that fails; must return at once.
        """
        self._max_message = max_message
        self.on_error = on_error
        self.replica: Callable[[], str] = str

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Aborts the call with the status of the error that it raises."""
        # An earlier call may have left its user here.
        acting.set("")
        return _CheckedCall(method, context, self)

    def check_response(self, method: str, response: Message) -> None:
        """Checks that a response fits into a message.

        Raises:
            AnswerTooLarge: It does not.
        """
        size = response.ByteSize()
        if size > self._max_message:
            log.error("response too large", method=method, size=size)
            raise errors.AnswerTooLarge(size, self._max_message)


class _CheckedCall:
    """Aborts one call. Thousands are in progress at the same time: a generator would take five times the memory."""

    __slots__ = ("_context", "_interceptor", "_method", "_peer")

    def __init__(self, method: str, context: Call, interceptor: ErrorInterceptor) -> None:
        self._method = method
        self._context = context
        self._interceptor = interceptor
        # Read now: once a call has ended, peer() reads freed memory.
        self._peer = context.peer()

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            return
        if isinstance(error, FedroundError):
            structlog.contextvars.bind_contextvars(reason=error.reason)
            self._interceptor.on_error(self._method, self._peer, error)
            structlog.contextvars.bind_contextvars(reason=error.reason)
            await self._abort(to_status(error))
        else:
            error_id = str(uuid.uuid4())
            structlog.contextvars.bind_contextvars(reason="INTERNAL")
            log.exception("unexpected error", method=self._method, error_id=error_id)
            await self._abort(_internal(error_id))

    async def _abort(self, status: status_pb2.Status) -> None:
        # Not abort_with_status: this way the context knows the code, for logs and traces.
        rich = rpc_status.to_status(status)
        metadata = rich.trailing_metadata
        # A stranger does not learn the name of the machine.
        if acting.get() and (name := self._interceptor.replica()):
            metadata = (*metadata, (REPLICA, name))
        await self._context.abort(rich.code, rich.details, metadata)


def code_of(error: FedroundError) -> grpc.StatusCode:
    """Returns the status code of an error."""
    return next(code for family, code in CODES.items() if isinstance(error, family))


def to_status(error: FedroundError) -> status_pb2.Status:
    """Returns the status of an error, with details."""
    message = _sanitize(error.message)
    metadata = {name: redact(value) for name, value in error.metadata.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, errors.InvalidArgument) and (field := getattr(error, "field", None)):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=_sanitize(getattr(error, "description", ""))
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


def _sanitize(message: str) -> str:
    """Returns a text without tokens, which callers may type into any field, and cut to MAX_MESSAGE_BYTES."""
    message = redact(message)
    encoded = message.encode()
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return message
    return encoded[:MAX_MESSAGE_BYTES].decode(errors="ignore") + " ..."


def _internal(error_id: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id})
    return _status(
        grpc.StatusCode.INTERNAL,
        f"the server failed unexpectedly: report the id {error_id}, under which its log has the details",
        [info],
    )


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)
