"""What the database holds, for those who operate the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from peewee import fn

from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingState
from fedround_server.store.tables.schema import RoundRow, TrainingRow


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """What the database holds.

    Attributes:
        kind: "sqlite" or "postgresql".
        size_bytes: Its size.
        trainings: How many trainings there are, by state.
        rounds: How many rounds have no result yet, by state, each with the time when the oldest was opened.
    """

    kind: str
    size_bytes: int
    trainings: Mapping[TrainingState, int]
    rounds: Mapping[RoundState, tuple[int, datetime | None]]


def count_trainings() -> dict[TrainingState, int]:
    """Returns how many trainings there are, by state."""
    # One query for each: a grouped one would read the whole table.
    return {
        state: TrainingRow.select().where(TrainingRow.state == state.value, TrainingRow.remove_time.is_null()).count()
        for state in TrainingState
    }


def count_rounds() -> dict[RoundState, tuple[int, datetime | None]]:
    """Returns how many rounds have no result yet, by state, and when the oldest of them was opened."""
    return {state: _count_rounds(state) for state in RoundState if not state.is_over}


def _count_rounds(state: RoundState) -> tuple[int, datetime | None]:
    query = RoundRow.select(fn.COUNT(RoundRow.number), fn.MIN(RoundRow.open_time)).where(RoundRow.state == state.value)
    found: Any = query.tuples().get()
    count, oldest = found
    return count, oldest
