"""The base class of all exceptions, and one class per status code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import grpc

from fedround_client.printable import one_line

__all__ = [
    "Aborted",
    "AlreadyExists",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FedroundError",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerUnavailable",
    "Unauthenticated",
    "Unimplemented",
]

# The codes that a call gets, without a reason, when the connection fails or the server dies.
_CUT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# An upload is resumed after these.
_RESUMABLE = frozenset({"UPLOAD_INCOMPLETE", "UPLOAD_OFFSET", "CHUNK_CORRUPT"})


class FedroundError(Exception):
    """A call failed: the server answered with an error, or could not be reached.

    Attributes:
        code: The gRPC status code.
        reason: UPPER_SNAKE, for programs; the name of the code if the server gave none.
        message: What happened and what to do next, for people.
        metadata: More about the reason, by name.
        field_violations: For each invalid field of the request, what is wrong with it.
        retry_after: How many seconds to wait at least before the next try; None if the server did not say.
        address: The address of the replica that answered, or could not be reached; empty unless the client has
            several addresses.
        replica: The name that the replica gives itself; empty if it did not answer, does not know the caller, or is the
            only one and was given none.
    """

    _by_code: ClassVar[dict[grpc.StatusCode, type[FedroundError]]] = {}
    _by_reason: ClassVar[dict[str, type[FedroundError]]] = {}

    def __init_subclass__(cls, *, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        """Registers the class for its code or its reason."""
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
        """Makes the exception; see the attributes of the class."""
        super().__init__(code, reason, message, metadata, field_violations, retry_after)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.field_violations = dict(field_violations or {})
        self.retry_after = retry_after
        self.address = ""
        self.replica = ""

    def __str__(self) -> str:
        """Returns the reason, the message, the invalid fields and the replica as one line, without control characters.

        The replica is left out if there is a single one: then it has neither a name nor one of several addresses.
        """
        others = {field: text for field, text in self.field_violations.items() if text not in self.message}
        fields = "".join(f"; {field}: {text}" for field, text in others.items())
        name = f" {self.replica}" if self.replica else ""
        place = f" at {self.address}" if self.address and (name or self.address not in self.message) else ""
        where = f" (replica{name}{place})" if name or place else ""
        return one_line(f"{self.reason}: {self.message}{fields}{where}")

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed a little later."""
        if self.retry_after is not None or self.reason in _RESUMABLE or self.code is grpc.StatusCode.UNAVAILABLE:
            return True
        # Answers of the server have a reason of their own; only a defect has the code as its reason, and an error_id.
        return self.code in _CUT and self.reason == self.code.name and "error_id" not in self.metadata


class Unauthenticated(FedroundError, code=grpc.StatusCode.UNAUTHENTICATED):
    """The caller is not authenticated."""


class PermissionDenied(FedroundError, code=grpc.StatusCode.PERMISSION_DENIED):
    """The caller is not allowed to do this."""


class NotFound(FedroundError, code=grpc.StatusCode.NOT_FOUND):
    """The object does not exist, or the caller has no part in it."""


class InvalidArgument(FedroundError, code=grpc.StatusCode.INVALID_ARGUMENT):
    """The request is wrong in every state of the server: sending it again does not help."""


class FailedPrecondition(FedroundError, code=grpc.StatusCode.FAILED_PRECONDITION):
    """The request does not fit the present state."""


class AlreadyExists(FedroundError, code=grpc.StatusCode.ALREADY_EXISTS):
    """The object to create exists."""


class DataLoss(FedroundError, code=grpc.StatusCode.DATA_LOSS):
    """Bytes were lost or changed in transit."""


class ResourceExhausted(FedroundError, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """A limit of the server is reached."""


class OutOfRange(FedroundError, code=grpc.StatusCode.OUT_OF_RANGE):
    """A position is outside of the valid range."""


class Unimplemented(FedroundError, code=grpc.StatusCode.UNIMPLEMENTED):
    """The server, or this client, is too old for this."""


class DeadlineExceeded(FedroundError, code=grpc.StatusCode.DEADLINE_EXCEEDED):
    """The server did not answer in time."""


class ServerUnavailable(FedroundError, code=grpc.StatusCode.UNAVAILABLE):
    """The server cannot be reached."""


class Aborted(FedroundError, code=grpc.StatusCode.ABORTED):
    """The call or the training ended without a result."""
