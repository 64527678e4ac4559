"""The steps of verbs about trainings; each runs inside a verb's transaction, behind a lock of its training."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from peewee import Case, ModelSelect, Value, fn

from fedround_server.domain.chain import local_rounds
from fedround_server.domain.event import (
    ModelInfo,
    Payload,
    RoundStarted,
    TrainingFailed,
    TrainingFinished,
    TrainingRemoved,
)
from fedround_server.domain.round import RoundKind, RoundState, expected_updates
from fedround_server.domain.training import TRANSITIONS, TrainingFailure, TrainingState, UpdatePrecision
from fedround_server.failpoints import reached
from fedround_server.store import ledger
from fedround_server.store.noting import note
from fedround_server.store.prepared import insert, prepared, save
from fedround_server.store.rows import from_payload, to_spec, to_version
from fedround_server.store.schema import (
    CohortRow,
    EventRow,
    ParticipantRow,
    RoundRow,
    Row,
    TrainingRow,
    UpdateRow,
    UserRow,
    database_proxy,
)
from fedround_server.store.version import get_version

RowT = TypeVar("RowT", bound=Row)
BATCH = 500
SENT = (
    (CohortRow.training_id == UpdateRow.training_id)
    & (CohortRow.number == UpdateRow.number)
    & (CohortRow.user_id == UpdateRow.user_id)
)
"""Joins the members of rounds with what they sent."""
ALL = "all"
ACTOR = "actor"
COHORT = "cohort"


def held(rows: "ModelSelect[RowT]", strength: str = "FOR UPDATE") -> "ModelSelect[RowT]":
    """Holds what a query finds for the rest of the transaction; SQLite's only writer holds everything anyway.

    Users are held before trainings, and trainings before models, so that no two verbs wait for each other.
    """
    return rows.for_update(strength) if database_proxy.for_update else rows  # type: ignore[arg-type]  # stubs lack it


def hold_user(user_id: str) -> bool:
    """Makes those who do something in a user's name wait for each other, and its removal wait for them.

    This strength lets others register the user as a client meanwhile.

    Returns:
        Whether the user is present.
    """
    rows = UserRow.select().where(UserRow.user_id == user_id, UserRow.remove_time.is_null())
    return held(rows, "FOR NO KEY UPDATE").first() is not None


@prepared
def _present_training(training_id: str) -> "ModelSelect[TrainingRow]":
    return TrainingRow.select().where(TrainingRow.training_id == training_id, TrainingRow.remove_time.is_null())


@prepared
def _held_training(training_id: str) -> "ModelSelect[TrainingRow]":
    return held(_present_training.build(training_id))


@prepared
def _round(training_id: str, number: int) -> "ModelSelect[RoundRow]":
    return RoundRow.select().where(RoundRow.training_id == training_id, RoundRow.number == number)


def peek(training_id: str) -> TrainingRow | None:
    """Returns a training to look at; what it is may change before the transaction ends."""
    return _present_training.first(training_id)


def try_lock(training_id: str) -> TrainingRow | None:
    """Takes a training for the rest of the transaction: of two callers the second waits for the first's commit.

    This one lock orders everything that happens in a training; without it, PostgreSQL lets two last updates both
    see one missing, and nobody closes the round.
    """
    return _held_training.first(training_id)


def state_of(training: TrainingRow) -> TrainingState:
    """Returns a row's state."""
    return TrainingState(training.state)


def move(training: TrainingRow, target: TrainingState, now: datetime) -> None:
    """Makes a transition of the training's life."""
    if target not in TRANSITIONS[state_of(training)]:
        raise RuntimeError(f"a training cannot go from {training.state} to {target.value}")
    training.state = target.value
    training.update_time = now
    save(training)


def append(
    training: TrainingRow, payload: Payload, now: datetime, audience: str = ALL, number: int | None = None
) -> int:
    """Writes what happened behind the training's log; number is the round of the audience COHORT.

    Returns:
        The event's sequence.
    """
    training.last_sequence += 1
    training.update_time = now
    save(training)
    insert(
        EventRow(
            training_id=training.training_id,
            sequence=training.last_sequence,
            kind=type(payload).__name__,
            audience=audience,
            number=number,
            payload=from_payload(payload),
            create_time=now,
        )
    )
    return training.last_sequence


def participant_ids(training_id: str) -> list[str]:
    """Returns the present participants, in canonical order."""
    rows: Iterable[tuple[str]] = _present_participants(training_id, ParticipantRow.user_id).tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    return sorted(user_id for (user_id,) in rows)


def _present_participants(training_id: str, *columns: Any) -> "ModelSelect[ParticipantRow]":
    return ParticipantRow.select(*columns).where(
        ParticipantRow.training_id == training_id, ParticipantRow.remove_time.is_null()
    )


def model_info(model_id: str, version: int) -> ModelInfo:
    """Returns a model version by reference."""
    return ModelInfo(model_id, version, to_version(get_version(model_id, version)).blob)


def counted(training_id: str, number: int) -> list[UpdateRow]:
    """Returns the updates of a round that count, in canonical order: those of members that are not removed."""
    rows = (
        UpdateRow.select()
        .join(CohortRow, on=SENT)
        .where(UpdateRow.training_id == training_id, UpdateRow.number == number, ~CohortRow.removed)
    )
    return sorted(rows, key=lambda row: row.user_id)


def recount(row: RoundRow) -> None:
    """Counts a round's present members and their updates anew, after its cohort changed."""
    present = (CohortRow.training_id == row.training_id) & (CohortRow.number == row.number) & ~CohortRow.removed
    counts: tuple[int, int] = (
        CohortRow.select(
            fn.COUNT(CohortRow.user_id),
            fn.COALESCE(fn.SUM(Case(None, [(UpdateRow.update_id.is_null(), 0)], 1)), 0),
        )
        .left_outer_join(UpdateRow, on=SENT)
        .where(present)
        .tuples()
        .get()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    row.members, row.arrived = int(counts[0]), int(counts[1])
    RoundRow.update(members=row.members, arrived=row.arrived).where(
        RoundRow.training_id == row.training_id, RoundRow.number == row.number
    ).execute()


def get_round(training_id: str, number: int) -> RoundRow:
    """Returns the row of a round that there is."""
    return _round.one(training_id, number)


def find_round(training_id: str, number: int) -> RoundRow | None:
    """Returns a round's row."""
    return _round.first(training_id, number)


def open_round(
    training: TrainingRow, number: int, kind: RoundKind, now: datetime, chain: Sequence[str] = (), step: int = 0
) -> None:
    """Opens a round for all present participants (or for those in a chain); without any, the training fails.

    Args:
        training: The training, locked.
        number: The round's number.
        kind: What is asked for.
        now: The time to write.
        chain: The participants that go on with models that they were dealt.
        step: Rounds of the chain so far.
    """
    training_id = training.training_id
    members = enter(training_id, number, chain, now) if chain else _enter_all(training_id, number, now)
    if not members:
        fail(training, "NO_PARTICIPANTS", "no participants are left", now)
        return
    spec = to_spec(training.spec)
    state = TrainingState.SWAG_ROUND if kind is RoundKind.SWAG else TrainingState.ONGOING
    if state_of(training) is not state:
        move(training, state, now)
    policy = spec.round_policy
    row = RoundRow.create(
        training_id=training.training_id,
        number=number,
        kind=kind.value,
        state=RoundState.OPEN.value,
        epoch=0,
        step=step,
        attempt=1,
        model_version=training.model_version,
        members=members,
        arrived=0,
        expected=expected_updates(policy, members),
        metrics=None,
        num_examples=0,
        open_time=now,
        deadline=None if policy.deadline is None else now + policy.deadline,
        done_time=None,
    )
    training.round = number
    note("round_opened", training, subject=number, kind=kind.value, version=training.model_version, members=members)
    append(training, round_started(training, row), now, audience=COHORT, number=number)
    reached("round.opened")


def round_started(training: TrainingRow, row: RoundRow) -> RoundStarted:
    """Returns what a round asks of those who are in it."""
    spec = to_spec(training.spec)
    kind = RoundKind(row.kind)
    return RoundStarted(
        round=row.number,
        kind=row.kind,
        model=model_info(training.model_id, row.model_version),
        deadline=row.deadline,
        aggregation=spec.aggregation,
        metric_names=spec.metric_names,
        local_rounds=local_rounds(spec.aggregation) if kind is RoundKind.TRAIN else 1,
        dealt=row.step > 0,
        swag=spec.uncertainty.options if kind is RoundKind.SWAG else None,
        attempt=row.attempt,
        update_precision=(spec.update_precision if kind is RoundKind.TRAIN else UpdatePrecision.FULL).value,
    )


def enter(training_id: str, number: int, user_ids: Sequence[str], now: datetime) -> int:
    """Adds members to a round's cohort; returns how many."""
    member = {"training_id": training_id, "number": number, "removed": False, "ask_time": now}
    for start in range(0, len(user_ids), BATCH):
        rows = [{**member, "user_id": user_id} for user_id in user_ids[start : start + BATCH]]
        CohortRow.insert_many(rows).execute()
    return len(user_ids)


def _enter_all(training_id: str, number: int, now: datetime) -> int:
    """Adds all present participants to a round's cohort; returns how many."""
    ask_time = Value(now, converter=CohortRow.ask_time.db_value)
    values = {
        CohortRow.training_id: ParticipantRow.training_id,
        CohortRow.number: Value(number),
        CohortRow.user_id: ParticipantRow.user_id,
        CohortRow.removed: Value(False),
        CohortRow.ask_time: ask_time,
    }
    members = _present_participants(training_id, *values.values())
    return int(CohortRow.insert_from(members, list(values)).as_rowcount().execute())


def complete(training: TrainingRow, now: datetime, *, early: bool) -> None:
    """Ends a training at its target, or when its patience is over."""
    note("training_completed", training, subject=training.model_version, early=early)
    move(training, TrainingState.COMPLETED, now)
    append(training, TrainingFinished(training.model_id, training.model_version, early), now)


def fail(training: TrainingRow, reason: str, message: str, now: datetime) -> None:
    """Ends a training in ERROR; its updates and model versions stay."""
    abandon(training)
    training.failure_reason = reason
    training.failure_message = message
    note("training_failed", training, reason=reason)
    move(training, TrainingState.ERROR, now)
    append(training, TrainingFailed(reason, TrainingFailure(reason, message).public_message), now)


def abandon(training: TrainingRow) -> None:
    """Ends the current round without a result; an aggregation under way will not commit."""
    changed = (
        RoundRow.update(state=RoundState.ABANDONED.value)
        .where(
            RoundRow.training_id == training.training_id,
            RoundRow.number == training.round,
            RoundRow.state.in_([state.value for state in RoundState if not state.is_over]),
        )
        .execute()
    )
    if changed:
        ledger.supersede(training, counted(training.training_id, training.round), "round_abandoned")
        note("round_abandoned", training, subject=training.round)


def remove(training: TrainingRow, now: datetime) -> None:
    """Removes a training, whatever it is at; its model stays."""
    abandon(training)
    note("training_removed", training)
    append(training, TrainingRemoved(), now)
    training.remove_time = now
    save(training)
