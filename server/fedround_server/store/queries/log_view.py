"""Reads of views: which part of the event log of a training a user may read."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from peewee import JOIN, Expression, ModelSelect, Query

from fedround_server.store.db.compiled import compiled_values, in_array
from fedround_server.store.tables.mapping import ENDED, NOT_ENDED
from fedround_server.store.tables.schema import ParticipantRow, TrainingRow

# What the views of a training are made of, whoever reads it.
_OF_TRAINING = (
    TrainingRow.training_id,
    TrainingRow.actor_id,
    TrainingRow.state,
    TrainingRow.remove_time,
    TrainingRow.last_sequence,
)


@dataclass(frozen=True, slots=True)
class LogView:
    """The part of a training's log that a user may read; other users' own events in it are left out.

    Attributes:
        training_id: The training.
        is_actor: Whether the user is the actor, who reads all events.
        after: The sequence after which the view begins.
        until: The last sequence of a removed participant's view; None while the participant is present.
        last_sequence: The last sequence of the log.
        ended: Whether no event will be added to the view.
    """

    training_id: str
    is_actor: bool
    after: int
    until: int | None
    last_sequence: int
    ended: bool


def find_views(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], LogView]:
    """Returns the views that exist of (training, user) pairs, also of trainings that are removed or were left."""
    users_of, trainings_of = defaultdict(set), defaultdict(set)
    for training_id, user_id in pairs:
        users_of[training_id].add(user_id)
        trainings_of[user_id].add(training_id)
    # One query for each training or one for each user, whichever are fewer: many users ask about one training, or one
    # user about many.
    groups: Iterable[tuple[Collection[str], Collection[str]]]
    if len(users_of) <= len(trainings_of):
        groups = [([training_id], user_ids) for training_id, user_ids in users_of.items()]
    else:
        groups = [(training_ids, [user_id]) for user_id, training_ids in trainings_of.items()]
    return {
        (view.training_id, user_id): view
        for training_ids, user_ids in groups
        for user_id, view in _views(_named.all(training_ids, user_ids), user_ids)
    }


def find_open_views(user_id: str) -> list[LogView]:
    """Returns the views of all running trainings that a user steers or takes part in."""
    return [view for _, view in _views(_open.all(user_id), [user_id])]


def find_actor_views(training_ids: Collection[str]) -> list[tuple[str, LogView]]:
    """Returns the actors of trainings with their views, also of trainings that are removed."""
    rows = _rows_of_actors().where(in_array(TrainingRow.training_id, training_ids))
    return [_actor_view(*row) for row in _tuples(rows)]


def find_open_actor_views() -> list[tuple[str, LogView]]:
    """Returns the actors of all trainings that have not ended with their views."""
    # A condition that names the states uses their index.
    rows = _rows_of_actors().where(TrainingRow.state.in_(NOT_ENDED), TrainingRow.remove_time.is_null())
    return [_actor_view(*row) for row in _tuples(rows)]


@compiled_values
def _named(training_ids: Collection[str], user_ids: Collection[str]) -> Query:
    return _rows(in_array(ParticipantRow.user_id, user_ids)).where(in_array(TrainingRow.training_id, training_ids))


@compiled_values
def _open(user_id: str) -> Query:
    present = (ParticipantRow.user_id == user_id) & ParticipantRow.remove_time.is_null()
    taking_part = ParticipantRow.select(ParticipantRow.training_id).where(present)
    steered = TrainingRow.alias()
    steering = steered.select(steered.training_id).where(steered.actor_id == user_id)
    return _rows(present).where(
        # PostgreSQL has no index for an OR of two tables.
        TrainingRow.training_id.in_(taking_part | steering),
        TrainingRow.state.not_in(ENDED),
        TrainingRow.remove_time.is_null(),
    )


def _rows(participants: Expression) -> "ModelSelect[TrainingRow]":
    """Returns a query for trainings with those of their participants that fulfil a condition.

    One query reads both: else a view could have ended before the log has its last event.
    """
    return TrainingRow.select(
        *_OF_TRAINING,
        ParticipantRow.user_id,
        ParticipantRow.after_sequence,
        ParticipantRow.until_sequence,
    ).join(ParticipantRow, JOIN.LEFT_OUTER, on=((ParticipantRow.training_id == TrainingRow.training_id) & participants))


def _rows_of_actors() -> "ModelSelect[TrainingRow]":
    return TrainingRow.select(*_OF_TRAINING)


def _tuples(rows: "ModelSelect[TrainingRow]") -> Iterable[tuple[Any, ...]]:
    found: Iterable[tuple[Any, ...]] = rows.tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    return found


def _actor_view(
    training_id: str, actor_id: str, state: str, remove_time: datetime | None, last_sequence: int
) -> tuple[str, LogView]:
    over = remove_time is not None or state in ENDED
    return actor_id, LogView(training_id, True, 0, None, last_sequence, over)


def _views(rows: Iterable[tuple[Any, ...]], user_ids: Collection[str]) -> Iterator[tuple[str, LogView]]:
    """Returns users with their views, from what `_rows` found."""
    wanted, steered = frozenset(user_ids), set()
    for training_id, actor_id, state, remove_time, last_sequence, user_id, after, until in rows:
        over = remove_time is not None or state in ENDED
        if actor_id in wanted and training_id not in steered:
            steered.add(training_id)
            yield _actor_view(training_id, actor_id, state, remove_time, last_sequence)
        if user_id not in (None, actor_id):
            yield user_id, LogView(training_id, False, after, until, last_sequence, over or until is not None)
