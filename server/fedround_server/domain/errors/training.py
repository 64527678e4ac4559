"""Errors about trainings."""

from collections.abc import Sequence
from typing import ClassVar

from fedround_server.domain.errors.family import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied


class TrainingNotFound(NotFound):
    """The training does not exist, or the caller has no part in it: one answer, so that ids cannot be probed."""

    reason = "TRAINING_NOT_FOUND"
    remedy = "check the id, and which user the token belongs to"
    resource_type = "training"


class NotActor(PermissionDenied):
    """Only the training's actor may do this."""

    reason = "NOT_ACTOR"
    remedy = "ask the actor"


class AggregationIncompatible(InvalidArgument):
    """Two stages of an aggregation, or an aggregation and another option or the model, do not go together."""

    reason = "AGGREGATION_INCOMPATIBLE"
    remedy = "change one of the two; docs/aggregation-stages.md says what goes with what"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"spec.aggregation.{field}: {description}", field=f"spec.aggregation.{field}")
        self.field = f"spec.aggregation.{field}"
        self.description = description


class AccountingMissing(FailedPrecondition):
    """The server cannot account for differential privacy: the package that computes epsilon is not installed."""

    reason = "ACCOUNTING_MISSING"
    remedy = "install it where the server runs: `pip install 'fedround[dp]'`"


class UnknownClients(InvalidArgument):
    """A list names users that do not exist; 20 of them are in the message and 60 in the metadata."""

    reason = "UNKNOWN_CLIENTS"
    remedy = "correct the list and send it whole: nothing was changed"
    # All of a status travels as metadata, which gRPC limits to 8 KiB.
    in_message: ClassVar[int] = 20
    in_metadata: ClassVar[int] = 60

    def __init__(self, client_ids: Sequence[str], what: str = "no such users", field: str = "client_ids") -> None:
        unknown = sorted(client_ids)
        more = len(unknown) - self.in_message
        named = ", ".join(unknown[: self.in_message]) + (f" and {more} more" if more > 0 else "")
        super().__init__(
            f"{field}: {what}: {named}; nothing was changed",
            client_ids=", ".join(unknown[: self.in_metadata]),
            count=str(len(unknown)),
        )
        self.field = field
        self.description = f"{what}: {named}"


class NoParticipants(FailedPrecondition):
    """The training has no participants, or fewer than its rounds need."""

    reason = "NO_PARTICIPANTS"
    remedy = "register clients first"


class CohortImpossible(FailedPrecondition):
    """Too few participants are registered for the training's cohort, or too few have its labels."""

    reason = "COHORT_IMPOSSIBLE"
    remedy = "register more clients, have an admin set the labels of users, or create a training with another cohort"


class TrainingNotInitial(FailedPrecondition):
    """Only a training in the state INITIAL can be started; of several starts at once exactly one succeeds."""

    reason = "TRAINING_NOT_INITIAL"
    remedy = "nothing: it was started; see GetTraining"


class TrainingRunning(FailedPrecondition):
    """The training, or a training of the user to remove, is running, and `force` is not set."""

    reason = "TRAINING_RUNNING"
    remedy = "wait for its end, or set `force`"


class TrainingEnded(FailedPrecondition):
    """The training has ended."""

    reason = "TRAINING_ENDED"
    remedy = "create a new training from its model"


class TrainingNotRunning(FailedPrecondition):
    """The training has not been started, or has ended: it cannot be stopped, paused, resumed or changed."""

    reason = "TRAINING_NOT_RUNNING"
    remedy = "start it first; if it has ended, create a new training from its model"


class TrainingPaused(FailedPrecondition):
    """The training is paused already."""

    reason = "TRAINING_PAUSED"
    remedy = "nothing: it is paused; ResumeTraining ends the pause"


class TrainingNotPaused(FailedPrecondition):
    """The training is not paused, so it cannot be resumed."""

    reason = "TRAINING_NOT_PAUSED"
    remedy = "nothing: its rounds open by themselves"


class LastParticipant(FailedPrecondition):
    """A running training keeps at least one participant."""

    reason = "LAST_PARTICIPANT"
    remedy = "register another one first, or remove the training"
