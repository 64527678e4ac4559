"""The families of errors. `interceptors/errors.py` maps each family to its gRPC status code."""

from collections.abc import Mapping
from typing import ClassVar


class FedroundError(Exception):
    """A call failed for a reason that the caller is told.

    Attributes:
        reason: UPPER_SNAKE, stable, for programs.
        remedy: What a caller can do about errors of this reason, in Markdown.
        retry_seconds: How long to wait before the next try; None if waiting does not help.
        message: What happened and what to do next, for people.
        metadata: More facts for programs.
    """

    reason: ClassVar[str] = "INTERNAL"
    remedy: ClassVar[str] = ""
    retry_seconds: float | None = None

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = metadata


class Unauthenticated(FedroundError):
    """The caller is not authenticated."""


class PermissionDenied(FedroundError):
    """The caller is not allowed to do this."""


class NotFound(FedroundError):
    """The object does not exist, or the caller has no part in it: one answer, so that ids cannot be probed."""

    resource_type: ClassVar[str] = ""

    def __init__(self, resource_id: str, message: str = "") -> None:
        noun = self.resource_type
        message = message or f"there is no {noun} {resource_id} that you have a part in: check the id"
        super().__init__(message, id=resource_id)
        self.resource_id = resource_id


class InvalidArgument(FedroundError):
    """The request is wrong in every state of the server."""


class FailedPrecondition(FedroundError):
    """The request does not fit the present state."""


class AlreadyExists(FedroundError):
    """The object to create exists."""


class DataLoss(FedroundError):
    """Bytes were lost or changed, in transit or on the server's disk."""


class ResourceExhausted(FedroundError):
    """A limit is reached."""


class OutOfRange(FedroundError):
    """A position is outside of the valid range."""


class Aborted(FedroundError):
    """A later call took the place of this one."""


class Unavailable(FedroundError):
    """The server cannot answer now."""

    retry_seconds = 1.0
