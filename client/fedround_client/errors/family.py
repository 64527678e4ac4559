"""The base of all exceptions, and one class a status code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import grpc

_CUT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

_PASSING = frozenset({"UPLOAD_INCOMPLETE", "UPLOAD_OFFSET", "CHUNK_CORRUPT"})


class FedroundError(Exception):
    """An error answered by the server, or met on the way to it.

    Attributes:
        code: The gRPC status code.
        reason: UPPER_SNAKE, for programs; the code's name if the server gave no reason.
        message: What happened and what to do next, for people.
        metadata: More about the reason, by name.
        field_violations: For each refused field of the request, what is wrong with it.
        retry_after: How many seconds to wait at least before the next try, as the server said; None if it did not.
    """

    _by_code: ClassVar[dict[grpc.StatusCode, type[FedroundError]]] = {}
    _by_reason: ClassVar[dict[str, type[FedroundError]]] = {}

    def __init_subclass__(cls, *, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        """Registers the class for the code or the reason that it stands for."""
        if code is not None:
            FedroundError._by_code[code] = cls
        if reason:
            FedroundError._by_reason[reason] = cls

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        field_violations: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Makes the error; see the attributes of the class."""
        super().__init__(code, reason, message, metadata, field_violations, retry_after)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.field_violations = dict(field_violations or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        """The reason, the message and the refused fields in one line."""
        told = {field: text for field, text in self.field_violations.items() if text not in self.message}
        fields = "".join(f"; {field}: {text}" for field, text in told.items())
        return f"{self.reason}: {self.message}{fields}"

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed a little later."""
        if self.retry_after is not None or self.reason in _PASSING or self.code is grpc.StatusCode.UNAVAILABLE:
            return True
        # A server that dies, or a cut connection, leaves one of these codes and no reason; an answer has a reason, and
        # a mistake in the server an id in its log.
        return self.code in _CUT and self.reason == self.code.name and "error_id" not in self.metadata


class Unauthenticated(FedroundError, code=grpc.StatusCode.UNAUTHENTICATED):
    """The server does not know who is calling."""


class PermissionDenied(FedroundError, code=grpc.StatusCode.PERMISSION_DENIED):
    """The caller may not do this."""


class NotFound(FedroundError, code=grpc.StatusCode.NOT_FOUND):
    """The id does not exist, or the caller has no part in it."""


class InvalidArgument(FedroundError, code=grpc.StatusCode.INVALID_ARGUMENT):
    """The request itself is wrong; sending it again will not help."""


class FailedPrecondition(FedroundError, code=grpc.StatusCode.FAILED_PRECONDITION):
    """The state that something is in does not allow this now."""


class AlreadyExists(FedroundError, code=grpc.StatusCode.ALREADY_EXISTS):
    """Something else is there under that name."""


class DataLoss(FedroundError, code=grpc.StatusCode.DATA_LOSS):
    """Bytes were lost or damaged on the way."""


class ResourceExhausted(FedroundError, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """A limit of the server is reached."""


class OutOfRange(FedroundError, code=grpc.StatusCode.OUT_OF_RANGE):
    """A position lies outside of what there is."""


class Unimplemented(FedroundError, code=grpc.StatusCode.UNIMPLEMENTED):
    """One of the two sides is too old for this."""


class DeadlineExceeded(FedroundError, code=grpc.StatusCode.DEADLINE_EXCEEDED):
    """The server did not answer in time."""


class ServerUnavailable(FedroundError, code=grpc.StatusCode.UNAVAILABLE):
    """The server cannot be reached."""


class Aborted(FedroundError, code=grpc.StatusCode.ABORTED):
    """What was under way has ended without a result."""
