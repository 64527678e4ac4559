"""Trainings as somebody may see them.

Whether a training is there and whether the user has a part in it is one question to the database: strangers could
tell by two how many it took, and from that what exists.
"""

from peewee import ModelSelect, fn

from fedround_server.domain.errors import TrainingNotFound
from fedround_server.store import steps
from fedround_server.store.prepared import prepared
from fedround_server.store.schema import ParticipantRow, TrainingRow


def look(training_id: str, user_id: str) -> TrainingRow:
    """Returns a training to look at; what it is may change before the transaction ends.

    Raises:
        TrainingNotFound: There is none that the user steers or ever had a part in, or not any more.
    """
    return _found(training_id, _visible.first(training_id, user_id))


def lock(training_id: str, user_id: str) -> TrainingRow:
    """Takes a training for the rest of the transaction, like `steps.try_lock`.

    Raises:
        TrainingNotFound: There is none that the user steers or ever had a part in, or not any more.
    """
    return _found(training_id, _held.first(training_id, user_id))


@prepared
def _visible(training_id: str, user_id: str) -> "ModelSelect[TrainingRow]":
    # Also a part that the user has left: it knows of the training.
    part = ParticipantRow.select(ParticipantRow.user_id).where(
        ParticipantRow.training_id == training_id, ParticipantRow.user_id == user_id
    )
    return TrainingRow.select().where(
        TrainingRow.training_id == training_id,
        TrainingRow.remove_time.is_null(),
        (TrainingRow.actor_id == user_id) | fn.EXISTS(part),
    )


@prepared
def _held(training_id: str, user_id: str) -> "ModelSelect[TrainingRow]":
    return steps.held(_visible.build(training_id, user_id))


def _found(training_id: str, row: TrainingRow | None) -> TrainingRow:
    if row is None:
        raise TrainingNotFound(training_id)
    return row
