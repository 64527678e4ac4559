"""Opens rounds."""

from collections.abc import Sequence
from datetime import datetime

from peewee import Value

from fedround_server.domain.chain import local_rounds
from fedround_server.domain.event import RoundStarted
from fedround_server.domain.round import RoundKind, RoundState, expected_updates
from fedround_server.domain.training import TrainingState, UpdatePrecision
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import record
from fedround_server.store.queries.model import model_info
from fedround_server.store.queries.training import present_participants
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import BATCH_ROWS, COHORT, CohortRow, ParticipantRow, RoundRow, TrainingRow
from fedround_server.store.transitions.end_training import fail
from fedround_server.store.transitions.training import append_event, move, state_of


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
    members = enter_cohort(training_id, number, chain, now) if chain else _enter_all(training_id, number, now)
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
    record("round_opened", training, subject=number, kind=kind.value, version=training.model_version, members=members)
    append_event(training, round_started(training, row), now, audience=COHORT, number=number)
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


def enter_cohort(training_id: str, number: int, user_ids: Sequence[str], now: datetime) -> int:
    """Adds members to a round's cohort; returns how many."""
    member = {"training_id": training_id, "number": number, "removed": False, "ask_time": now}
    for start in range(0, len(user_ids), BATCH_ROWS):
        rows = [{**member, "user_id": user_id} for user_id in user_ids[start : start + BATCH_ROWS]]
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
    members = present_participants(training_id, *values.values())
    return int(CohortRow.insert_from(members, list(values)).as_rowcount().execute())
