"""RejectedUpdates about trainings."""

from collections.abc import Sequence
from typing import ClassVar

from fedround_server.domain.errors.family import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied


class TrainingNotFound(NotFound):
    """No such training for this caller."""

    reason = "TRAINING_NOT_FOUND"
    resource_type = "training"


class NotActor(PermissionDenied):
    """A participant calls what only the training's actor may."""

    reason = "NOT_ACTOR"


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
