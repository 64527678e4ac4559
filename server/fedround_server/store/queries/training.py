"""Reads of trainings.

Whether a training exists and whether the user has a part in it is a single query: two queries would let a caller tell
by their time which ids exist.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from peewee import ModelSelect, fn

from fedround_server.domain.errors import NotActor, TrainingNotFound
from fedround_server.domain.training import MAX_NAMED, Training
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.rows import locked
from fedround_server.store.queries.config import find_client_config, find_config
from fedround_server.store.queries.failure import list_failures
from fedround_server.store.queries.participant import is_participant, participant_ids, present_parts
from fedround_server.store.queries.privacy import find_accounts
from fedround_server.store.queries.quota import OPEN
from fedround_server.store.queries.shadow import find_shadow, shadow_models
from fedround_server.store.queries.user import user_names
from fedround_server.store.tables.mapping import ENDED, to_training
from fedround_server.store.tables.schema import ParticipantRow, RoundRow, TrainingClientsRow, TrainingRow


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


def find_training(training_id: str) -> TrainingRow | None:
    """Returns a training without locking it: it may change before the transaction ends."""
    return _present.first(training_id)


def lock_training(training_id: str) -> TrainingRow | None:
    """Locks a training until the end of the transaction.

    This lock orders everything that happens in a training. Without it, on PostgreSQL, two transactions with the last
    two updates would each see one update missing, and neither would close the round.
    """
    return _locked.first(training_id)


def find_visible(training_id: str, user_id: str) -> TrainingRow:
    """Returns a training without locking it.

    Raises:
        TrainingNotFound: There is no such training, or the user neither steers it nor ever took part in it.
    """
    return _found(training_id, _visible.first(training_id, user_id))


def find_locked(training_id: str, user_id: str) -> TrainingRow | None:
    """Returns a training like `lock_visible`; None if there is no such training for the user."""
    return _locked_visible.first(training_id, user_id)


def lock_visible(training_id: str, user_id: str) -> TrainingRow:
    """Returns a training like `find_visible`, and locks it until the end of the transaction."""
    return _found(training_id, find_locked(training_id, user_id))


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


def find_created_training(actor_id: str, request_id: str) -> TrainingRow | None:
    """Returns the training that a request of an actor has created, also if it was removed."""
    row: TrainingRow | None = TrainingRow.get_or_none(
        TrainingRow.actor_id == actor_id, TrainingRow.request_id == request_id
    )
    return row


def is_removed(training_id: str, actor_id: str) -> bool:
    """Returns whether an actor had a training that was removed."""
    return (
        TrainingRow.select()
        .where(
            TrainingRow.training_id == training_id,
            TrainingRow.actor_id == actor_id,
            TrainingRow.remove_time.is_null(False),
        )
        .exists()
    )


def find_training_of_model(model_id: str) -> TrainingRow | None:
    """Returns the training that works, or worked, on a model: a model that was used is copied for the next one."""
    row: TrainingRow | None = TrainingRow.get_or_none(TrainingRow.model_id == model_id)
    return row


def find_training_that_needs(model_id: str) -> TrainingRow | None:
    """Returns the training that has not ended and makes versions of a model, as its own or as that of a shadow."""
    running = TrainingRow.select().where(TrainingRow.remove_time.is_null(), TrainingRow.state.not_in(ENDED))
    row: TrainingRow | None = running.where(TrainingRow.model_id == model_id).first()
    shadow = find_shadow(model_id) if row is None else None
    return row if shadow is None else running.where(TrainingRow.training_id == shadow.training_id).first()


def lock_trainings_of_user(user_id: str, *, with_ended: bool = False) -> list[TrainingRow]:
    """Locks the trainings that a user steers or takes part in and that have not ended.

    All changes of users lock in one order, so that there is no deadlock.

    Args:
        user_id: The user.
        with_ended: Whether to return those that it steers and that have ended, too.
    """
    steered = TrainingRow.select(TrainingRow.training_id).where(TrainingRow.actor_id == user_id)
    trainings = []
    for training_id in sorted({row.training_id for rows in (steered, present_parts(user_id)) for row in rows}):
        training = lock_training(training_id)
        if training is None:
            continue
        steers = training.actor_id == user_id
        if training.state in ENDED:
            if steers and with_ended:
                trainings.append(training)
        elif steers or user_id in participant_ids(training_id):
            trainings.append(training)
    return trainings


def lock_open_trainings() -> list[TrainingRow]:
    """Returns all trainings that have not ended."""
    # By the states that it has, for which there is an index.
    rows = TrainingRow.select().where(TrainingRow.state.in_(OPEN), TrainingRow.remove_time.is_null())
    return list(locked(rows.order_by(TrainingRow.training_id)))


def page_trainings(
    user_id: str, *, as_actor: bool, before: tuple[datetime, str] | None, limit: int
) -> list[TrainingRow]:
    """Returns the trainings that a user steers (or takes part in), the newest first, behind a (create_time, id)."""
    rows = TrainingRow.select().where(TrainingRow.remove_time.is_null())
    if as_actor:
        rows = rows.where(TrainingRow.actor_id == user_id)
    else:
        rows = rows.where(TrainingRow.training_id.in_(present_parts(user_id)))
    if before is not None:
        time, training_id = before
        rows = rows.where(
            (TrainingRow.create_time < time)
            | ((TrainingRow.create_time == time) & (TrainingRow.training_id < training_id))
        )
    return list(rows.order_by(TrainingRow.create_time.desc(), TrainingRow.training_id.desc()).limit(limit))


def page_all_trainings(before: tuple[datetime, str] | None, limit: int) -> list[TrainingRow]:
    """Returns the trainings of all users, the newest first, behind a (create_time, id)."""
    # The bound of the first page, which is no limit, makes both kinds of database use the index.
    time, training_id = before or (datetime.max.replace(tzinfo=UTC), "")
    rows = TrainingRow.select().where(
        TrainingRow.remove_time.is_null(),
        TrainingRow.create_time <= time,
        (TrainingRow.create_time < time) | (TrainingRow.training_id < training_id),
    )
    return list(rows.order_by(TrainingRow.create_time.desc(), TrainingRow.training_id.desc()).limit(limit))


def load_trainings(
    rows: Sequence[TrainingRow], *, listed: bool = False, reader_id: str | None = None
) -> list[Training]:
    """Reads trainings by a constant number of queries.

    Args:
        rows: The trainings.
        listed: Whether they are for a list, which names no participants.
        reader_id: The participant that reads: it sees no other participant's id. None for the actor.
    """
    ids = [row.training_id for row in rows]
    clients: dict[str, list[str]] = {}
    participants: dict[str, list[str]] = {training_id: [] for training_id in ids}
    if not listed:
        for part in _participants(ids, reader_id):
            participants[part.training_id].append(part.user_id)
        if reader_id is None:
            named = TrainingClientsRow.select().where(TrainingClientsRow.training_id.in_(ids))
            clients = {row.training_id: row.client_ids for row in named}
    rounds = _current_rounds(ids)
    names = user_names(sorted({row.actor_id for row in rows}))
    private = [row.training_id for row in rows if not listed and "differential_privacy" in row.spec["aggregation"]]
    accounts = find_accounts(private) if private else {}
    failures = {
        training_id: tuple(list_failures(training_id, current.number, MAX_NAMED))
        for training_id, current in rounds.items()
        if current.failed and not listed and reader_id is None
    }
    found = [
        to_training(
            row,
            clients.get(row.training_id, ()),
            tuple(sorted(participants[row.training_id])),
            rounds.get(row.training_id),
            failures.get(row.training_id, ()),
            # That of the next round.
            {} if listed else find_config(row.training_id, row.round + 1),
            find_client_config(row.training_id, row.round + 1) if not listed and reader_id is None else {},
            shadow_models(row.training_id)
            if not listed and reader_id is None and "shadow" in row.spec["aggregation"]
            else (),
            accounts.get(row.training_id),
            names.get(row.actor_id, ""),
        )
        for row in rows
    ]
    return list(map(_for_participants, found)) if listed or reader_id is not None else found


def _for_participants(training: Training) -> Training:
    """Returns a training without the ids that its aggregation names."""
    return replace(training, spec=replace(training.spec, aggregation=training.spec.aggregation.for_participants()))


@compiled
def _locked(training_id: str) -> "ModelSelect[TrainingRow]":
    return locked(_present.build(training_id))


@compiled
def _present(training_id: str) -> "ModelSelect[TrainingRow]":
    return TrainingRow.select().where(TrainingRow.training_id == training_id, TrainingRow.remove_time.is_null())


def _participants(training_ids: Sequence[str], reader_id: str | None) -> "ModelSelect[ParticipantRow]":
    rows = ParticipantRow.select(ParticipantRow.training_id, ParticipantRow.user_id).where(
        ParticipantRow.training_id.in_(training_ids), ParticipantRow.remove_time.is_null()
    )
    return rows if reader_id is None else rows.where(ParticipantRow.user_id == reader_id)


def _current_rounds(training_ids: Sequence[str]) -> dict[str, RoundRow]:
    current = (RoundRow.training_id == TrainingRow.training_id) & (RoundRow.number == TrainingRow.round)
    rows = (
        RoundRow.select(
            RoundRow.training_id,
            RoundRow.number,
            RoundRow.state,
            RoundRow.arrived,
            RoundRow.failed,
            RoundRow.expected,
        )
        .join(TrainingRow, on=current)
        .where(TrainingRow.training_id.in_(training_ids))
    )
    return {row.training_id: row for row in rows}


def _found(training_id: str, row: TrainingRow | None) -> TrainingRow:
    if row is None:
        raise TrainingNotFound(training_id)
    return row
