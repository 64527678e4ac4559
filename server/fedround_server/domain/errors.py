"""Everything that fedround refuses, one class a reason.

The families say what kind of refusal it is; interceptors/errors.py gives each family its gRPC status code.
A message says what happened and what to do next.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class FedroundError(Exception):
    """A refusal with a reason.

    Attributes:
        reason: UPPER_SNAKE, stable, for programs.
        message: For people.
        metadata: More facts for programs.
    """

    reason: ClassVar[str] = "INTERNAL"

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


class TokenMissing(Unauthenticated):
    """The call carries no token."""

    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__("the call carries no token: send metadata `authorization: Bearer TOKEN` or `x-token: TOKEN`")


class TokenInvalid(Unauthenticated):
    """The token is malformed, unknown or revoked."""

    reason = "TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("the token is not valid (any more): ask an admin for a new one (`fedround user rotate-token`)")


class RoleRequired(PermissionDenied):
    """The caller's role does not include this call."""

    reason = "ROLE_REQUIRED"


class NotActor(PermissionDenied):
    """A participant calls what only the training's actor may."""

    reason = "NOT_ACTOR"


class NotInCohort(PermissionDenied):
    """The caller does not belong to the round's cohort."""

    reason = "NOT_IN_COHORT"


class TrainingNotFound(NotFound):
    """No such training for this caller."""

    reason = "TRAINING_NOT_FOUND"
    resource_type = "training"


class ModelNotFound(NotFound):
    """No such model for this caller."""

    reason = "MODEL_NOT_FOUND"
    resource_type = "model"


class UserNotFound(NotFound):
    """No such user for this caller."""

    reason = "USER_NOT_FOUND"
    resource_type = "user"


class RoundNotFound(NotFound):
    """The training has no such round."""

    reason = "ROUND_NOT_FOUND"
    resource_type = "round"


class FieldInvalid(InvalidArgument):
    """A field is missing, malformed or out of range."""

    reason = "FIELD_INVALID"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", field=field)
        self.field = field
        self.description = description


class UnknownClients(InvalidArgument):
    """A list names clients that do not exist; they are named as far as an answer has room, and nothing was changed."""

    reason = "UNKNOWN_CLIENTS"
    # All of a status travels as metadata, which gRPC limits to 8 KiB.
    in_message: ClassVar[int] = 20
    in_metadata: ClassVar[int] = 60

    def __init__(self, client_ids: Sequence[str], what: str = "no such users") -> None:
        unknown = sorted(client_ids)
        more = len(unknown) - self.in_message
        named = ", ".join(unknown[: self.in_message]) + (f" and {more} more" if more > 0 else "")
        super().__init__(
            f"client_ids: {what}: {named}; nothing was changed",
            client_ids=", ".join(unknown[: self.in_metadata]),
            count=str(len(unknown)),
        )
        self.field = "client_ids"
        self.description = f"{what}: {named}"


class ModelFormat(InvalidArgument):
    """The file is not an acceptable safetensors file."""

    reason = "MODEL_FORMAT"


class UpdateMismatch(InvalidArgument):
    """An update's tensors are not those of the model."""

    reason = "UPDATE_MISMATCH"


class UpdateNotFinite(InvalidArgument):
    """An update, a model or a metric contains NaN or Inf."""

    reason = "UPDATE_NOT_FINITE"


class NumExamples(InvalidArgument):
    """num_examples is out of bounds."""

    reason = "NUM_EXAMPLES"

    def __init__(self, num_examples: int, highest: int) -> None:
        description = f"must be in 1..{highest}, not {num_examples}"
        super().__init__(f"num_examples: {description}")
        self.field = "num_examples"
        self.description = description


class NoParticipants(FailedPrecondition):
    """A training cannot start without (enough) participants."""

    reason = "NO_PARTICIPANTS"


class TrainingNotInitial(FailedPrecondition):
    """Only a training in the state INITIAL can be started."""

    reason = "TRAINING_NOT_INITIAL"


class TrainingRunning(FailedPrecondition):
    """A running training, or a user that steers one, is removed with force only."""

    reason = "TRAINING_RUNNING"


class TrainingEnded(FailedPrecondition):
    """The training is over."""

    reason = "TRAINING_ENDED"


class LastParticipant(FailedPrecondition):
    """A running training keeps at least one participant."""

    reason = "LAST_PARTICIPANT"


class RoundNotOpen(FailedPrecondition):
    """The round is not open: late, early, of another kind, or of another number."""

    reason = "ROUND_NOT_OPEN"


class ModelInUse(FailedPrecondition):
    """A training that is not ended needs the model."""

    reason = "MODEL_IN_USE"


class ArchitectureUnknown(FailedPrecondition):
    """The model's architecture is not registered, or it names none."""

    reason = "ARCHITECTURE_UNKNOWN"


class PosteriorMissing(FailedPrecondition):
    """No SWAG posterior was collected around the version."""

    reason = "POSTERIOR_MISSING"


class PredictionFailed(FailedPrecondition):
    """The model, its architecture and the method do not fit together."""

    reason = "PREDICTION_FAILED"


class LastAdmin(FailedPrecondition):
    """The server keeps at least one admin."""

    reason = "LAST_ADMIN"


class UploadOffset(FailedPrecondition):
    """An upload is resumed at another offset than where it stands."""

    reason = "UPLOAD_OFFSET"

    def __init__(self, offset: int, committed_size: int) -> None:
        super().__init__(
            f"offset: the upload stands at {committed_size} bytes, not at {offset}: ask GetUpload and go on there",
            committed_size=str(committed_size),
        )


class UploadSuperseded(Aborted):
    """A later try of the same upload took over."""

    reason = "UPLOAD_SUPERSEDED"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"a later try of the upload {upload_id} took over: leave the file to that one")


class UpdateExists(AlreadyExists):
    """The participant has submitted another update for the round."""

    reason = "UPDATE_EXISTS"


class MetricsExist(AlreadyExists):
    """The participant has reported for the round."""

    reason = "METRICS_EXIST"


class UserExists(AlreadyExists):
    """The name is taken."""

    reason = "USER_EXISTS"


class UploadIncomplete(DataLoss):
    """The stream ended before the end of the file."""

    reason = "UPLOAD_INCOMPLETE"

    def __init__(self, received: int, expected: int | None) -> None:
        of = f" of {expected}" if expected is not None else ""
        super().__init__(
            f"the stream ended after {received}{of} bytes of the file: send it again, or resume it by upload_id",
            received=str(received),
        )


class DigestMismatch(DataLoss):
    """The bytes are not those that were declared."""

    reason = "DIGEST_MISMATCH"


class ModelTooLarge(ResourceExhausted):
    """The file is larger than the server takes."""

    reason = "MODEL_TOO_LARGE"


class Quota(ResourceExhausted):
    """The user has as many of these as it may."""

    reason = "QUOTA"


class PredictionLimit(ResourceExhausted):
    """A prediction takes more time or memory than the operator allows, or too many wait."""

    reason = "PREDICTION_LIMIT"


class TooManyUploads(ResourceExhausted):
    """Too many uploads at the same time."""

    reason = "TOO_MANY_UPLOADS"


class TooManyStreams(ResourceExhausted):
    """Too many subscriptions or downloads at the same time."""

    reason = "TOO_MANY_STREAMS"


class AnswerTooLarge(ResourceExhausted):
    """The answer does not fit into a message."""

    reason = "ANSWER_TOO_LARGE"

    def __init__(self, size: int, most: int) -> None:
        super().__init__(
            f"the answer has {size} bytes, a message carries {most}: ask for less; what was to be changed is changed"
        )


class CursorExpired(OutOfRange):
    """A subscription cannot be resumed at this sequence."""

    reason = "CURSOR_EXPIRED"


class OffsetOutOfRange(OutOfRange):
    """A download cannot start at this offset."""

    reason = "OFFSET_OUT_OF_RANGE"


class StoreUnavailable(Unavailable):
    """The database does not answer."""

    reason = "STORE_UNAVAILABLE"
