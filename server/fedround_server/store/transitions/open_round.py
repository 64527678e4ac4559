"""Opens rounds."""

from collections.abc import Sequence
from datetime import datetime

from peewee import Value

from fedround_server.domain.event import RoundStarted
from fedround_server.domain.policy import expected_updates
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import RoundKind
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingFailure
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import record
from fedround_server.store.queries.config import given_config, has_config
from fedround_server.store.queries.participant import present_participants
from fedround_server.store.queries.version import model_info
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import COHORT, CohortRow, ParticipantRow, RoundRow, TrainingRow
from fedround_server.store.transitions.end_training import fail
from fedround_server.store.transitions.training import append_event, move, state_of


def open_round(
    training: TrainingRow, number: int, kind: RoundKind, now: datetime, chain: Sequence[str] = (), step: int = 0
) -> None:
    """Opens a round for all present participants, or for those in a chain; without any, the training fails.

    In a chain, `step` counts the rounds since the last version in which models changed hands.
    """
    training_id = training.training_id
    members = enter_cohort(training_id, number, chain, now) if chain else _enter_all(training_id, number, now)
    if not members:
        fail(training, TrainingFailure("NO_PARTICIPANTS", "no participants are left"), now)
        return
    spec = to_spec(training.spec)
    if state_of(training) is not kind.training_state:
        move(training, kind.training_state, now)
    policy = spec.round_policy
    row = RoundRow.create(
        training_id=training.training_id,
        number=number,
        kind=kind.name,
        state=RoundState.OPEN.value,
        epoch=0,
        step=step,
        attempt=1,
        model_version=training.model_version,
        members=members,
        arrived=0,
        failed=0,
        expected=expected_updates(policy, members),
        num_examples=0,
        open_time=now,
        deadline=None if policy.deadline is None else now + policy.deadline,
    )
    training.round = number
    facts = {"kind": kind.public_name, "version": training.model_version, "members": members}
    record("round_opened", training, subject=number, **facts, **given_config(training_id, row))
    append_event(training, round_started(training, row), now, audience=COHORT, number=number)
    reached("round.opened")


def round_started(training: TrainingRow, row: RoundRow) -> RoundStarted:
    """Returns what a round tells its cohort."""
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    request = kind.request(spec, row.step)
    return RoundStarted(
        round=row.number,
        kind=kind.public_name,
        model=model_info(training.model_id, row.model_version),
        deadline=row.deadline,
        aggregation=spec.aggregation,
        metric_names=spec.metric_names,
        local_rounds=request.local_rounds,
        assigned=request.assigned,
        swag=request.swag,
        attempt=row.attempt,
        update_precision=request.update_precision.value,
        tensors=spec.tensors,
        is_configured=has_config(training.training_id, row.number),
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
