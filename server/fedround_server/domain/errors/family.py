"""The families of refusals: what kind each is. `interceptors` gives each family its gRPC status code."""

from collections.abc import Mapping
from typing import ClassVar


class FedroundError(Exception):
    """A refusal with a reason.

    Attributes:
        reason: UPPER_SNAKE, stable, for programs.
        retry_seconds: How long to wait before the same is tried again; None if waiting does not help.
        message: For people.
        metadata: More facts for programs.
    """

    reason: ClassVar[str] = "INTERNAL"
    retry_seconds: float | None = None

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = metadata


class Unauthenticated(FedroundError):
    """The caller is not known."""


class PermissionDenied(FedroundError):
    """The caller may not do this."""


class NotFound(FedroundError):
    """There is no such thing, or the caller has no part in it: one answer, so that ids cannot be probed."""

    resource_type: ClassVar[str] = ""

    def __init__(self, resource_id: str) -> None:
        noun = self.resource_type
        super().__init__(f"there is no {noun} {resource_id} that you have a part in: check the id", id=resource_id)
        self.resource_id = resource_id


class InvalidArgument(FedroundError):
    """The request cannot be right, whatever the state of the server."""


class FailedPrecondition(FedroundError):
    """The request does not fit the present state."""


class AlreadyExists(FedroundError):
    """What is to be made is there already."""


class DataLoss(FedroundError):
    """Bytes went missing, or were changed on the way."""


class ResourceExhausted(FedroundError):
    """A limit is reached."""


class OutOfRange(FedroundError):
    """A position lies outside of what there is."""


class Aborted(FedroundError):
    """Something else that the caller does took the place of this."""


class Unavailable(FedroundError):
    """Not now; try again."""

    retry_seconds = 1.0
