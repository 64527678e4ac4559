"""Reads of what a backup contains; they are made once, of a copy that is not written to."""

from dataclasses import dataclass
from typing import Any

from peewee import ModelSelect, fn

from fedround_server.store.queries.blob import needed_digests
from fedround_server.store.tables.schema import ModelRow, TrainingRow, UserRow


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is that is not removed; of trainings, by state."""

    trainings: dict[str, int]
    models: int
    users: int


def find_digests() -> list[str]:
    """Returns the digests of all files that are needed, in order."""
    return sorted(needed_digests(None))


def count_objects() -> Counts:
    """Counts trainings, models and users."""
    states: ModelSelect[Any] = (
        TrainingRow.select(TrainingRow.state, fn.COUNT(TrainingRow.training_id))
        .where(TrainingRow.remove_time.is_null())
        .group_by(TrainingRow.state)
        .order_by(TrainingRow.state)
        .tuples()
    )
    return Counts(
        trainings=dict(states),
        models=ModelRow.select().where(ModelRow.remove_time.is_null()).count(),
        users=UserRow.select().where(UserRow.remove_time.is_null()).count(),
    )
