"""Reads of trainings and of their participants.

Whether a training exists and whether the user has a part in it is a single query: two queries would let a caller tell
by their time which ids exist.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from peewee import ModelSelect, fn

from fedround_server.domain.errors import NotActor, TrainingNotFound
from fedround_server.domain.training import Training
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.row_locks import locked
from fedround_server.store.tables.mapping import to_training
from fedround_server.store.tables.schema import ParticipantRow, RoundRow, TrainingClientsRow, TrainingRow


@compiled
def _training(training_id: str) -> "ModelSelect[TrainingRow]":
    return TrainingRow.select().where(TrainingRow.training_id == training_id, TrainingRow.remove_time.is_null())


@compiled
def _locked_training(training_id: str) -> "ModelSelect[TrainingRow]":
    return locked(_training.build(training_id))


@compiled
def _visible(training_id: str, user_id: str) -> "ModelSelect[TrainingRow]":
    # A participant that has left still knows of the training.
    part = ParticipantRow.select(ParticipantRow.user_id).where(
        ParticipantRow.training_id == training_id, ParticipantRow.user_id == user_id
    )
    return TrainingRow.select().where(
        TrainingRow.training_id == training_id,
        TrainingRow.remove_time.is_null(),
        (TrainingRow.actor_id == user_id) | fn.EXISTS(part),
    )


@compiled
def _locked_visible(training_id: str, user_id: str) -> "ModelSelect[TrainingRow]":
    return locked(_visible.build(training_id, user_id))


@compiled
def _participation(training_id: str, user_id: str) -> "ModelSelect[ParticipantRow]":
    return ParticipantRow.select().where(ParticipantRow.training_id == training_id, ParticipantRow.user_id == user_id)


def find_training(training_id: str) -> TrainingRow | None:
    """Returns a training without locking it: it may change before the transaction ends."""
    return _training.first(training_id)


def lock_training(training_id: str) -> TrainingRow | None:
    """Locks a training until the end of the transaction.

    This lock orders everything that happens in a training. Without it, on PostgreSQL, two transactions with the last
    two updates would each see one update missing, and neither would close the round.
    """
    return _locked_training.first(training_id)


def find_visible(training_id: str, user_id: str) -> TrainingRow:
    """Returns a training without locking it.

    Raises:
        TrainingNotFound: There is no such training, or the user neither steers it nor ever took part in it.
    """
    return _found(training_id, _visible.first(training_id, user_id))


def lock_visible(training_id: str, user_id: str) -> TrainingRow:
    """Locks a training until the end of the transaction.

    Raises:
        TrainingNotFound: There is no such training, or the user neither steers it nor ever took part in it.
    """
    return _found(training_id, _locked_visible.first(training_id, user_id))


def lock_steered(training_id: str, actor_id: str) -> TrainingRow:
    """Locks a training that the caller steers until the end of the transaction.

    Raises:
        TrainingNotFound: There is no such training for the caller.
        NotActor: The caller is a participant.
    """
    row = lock_visible(training_id, actor_id)
    if row.actor_id == actor_id:
        return row
    if is_participant(training_id, actor_id):
        raise NotActor("only the actor that created the training may do this: ask the actor")
    raise TrainingNotFound(training_id)


def find_participation(training_id: str, user_id: str) -> ParticipantRow | None:
    """Returns a user's part in a training, including one that the user has left."""
    return _participation.first(training_id, user_id)


def is_participant(training_id: str, user_id: str) -> bool:
    """Returns whether a user takes part in a training now."""
    part = find_participation(training_id, user_id)
    return part is not None and part.remove_time is None


def took_part(training: TrainingRow, user_id: str) -> bool:
    """Returns whether a user who may see a training takes, or took, part in it; its actor need not."""
    return user_id != training.actor_id or find_participation(training.training_id, user_id) is not None


def participant_ids(training_id: str) -> list[str]:
    """Returns the ids of the present participants, in canonical order."""
    rows: Iterable[tuple[str]] = present_participants(training_id, ParticipantRow.user_id).tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    return sorted(user_id for (user_id,) in rows)


def present_participants(training_id: str, *columns: Any) -> "ModelSelect[ParticipantRow]":
    """Returns a query for columns of the present participants."""
    return ParticipantRow.select(*columns).where(
        ParticipantRow.training_id == training_id, ParticipantRow.remove_time.is_null()
    )


def load_trainings(
    rows: Sequence[TrainingRow], *, listed: bool = False, viewer_id: str | None = None
) -> list[Training]:
    """Reads trainings by a constant number of queries.

    Args:
        rows: The trainings.
        listed: Whether they are for a list, which names no participants.
        viewer_id: The participant that reads: it sees no other participant's id. None for the actor.
    """
    ids = [row.training_id for row in rows]
    clients: dict[str, list[str]] = {}
    participants: dict[str, list[str]] = {training_id: [] for training_id in ids}
    if not listed:
        for part in _participants(ids, viewer_id):
            participants[part.training_id].append(part.user_id)
        if viewer_id is None:
            named = TrainingClientsRow.select().where(TrainingClientsRow.training_id.in_(ids))
            clients = {row.training_id: row.client_ids for row in named}
    rounds = _current_rounds(ids)
    return [
        to_training(
            row,
            clients.get(row.training_id, ()),
            tuple(sorted(participants[row.training_id])),
            rounds.get(row.training_id),
        )
        for row in rows
    ]


def _participants(training_ids: Sequence[str], viewer_id: str | None) -> "ModelSelect[ParticipantRow]":
    rows = ParticipantRow.select(ParticipantRow.training_id, ParticipantRow.user_id).where(
        ParticipantRow.training_id.in_(training_ids), ParticipantRow.remove_time.is_null()
    )
    return rows if viewer_id is None else rows.where(ParticipantRow.user_id == viewer_id)


def _current_rounds(training_ids: Sequence[str]) -> dict[str, RoundRow]:
    current = (RoundRow.training_id == TrainingRow.training_id) & (RoundRow.number == TrainingRow.round)
    rows = (
        RoundRow.select(RoundRow.training_id, RoundRow.arrived, RoundRow.expected)
        .join(TrainingRow, on=current)
        .where(TrainingRow.training_id.in_(training_ids))
    )
    return {row.training_id: row for row in rows}


def _found(training_id: str, row: TrainingRow | None) -> TrainingRow:
    if row is None:
        raise TrainingNotFound(training_id)
    return row
