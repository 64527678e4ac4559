"""Opens rounds."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from peewee import Value

from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.cohort import Cohort, draw, draw_independently
from fedround_server.domain.event import RoundStarted
from fedround_server.domain.policy import expected_updates
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import RoundKind
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingFailure
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import insert, save
from fedround_server.store.queries.config import given_config, has_config
from fedround_server.store.queries.participant import list_eligible, present_participants
from fedround_server.store.queries.round import all_members
from fedround_server.store.queries.version import model_info
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import COHORT, CohortRow, ParticipantRow, RoundRow, TrainingRow
from fedround_server.store.transitions.end_training import fail
from fedround_server.store.transitions.privacy import charge
from fedround_server.store.transitions.training import append_event, move, state_of


def open_round(
    training: TrainingRow, number: int, kind: RoundKind, now: datetime, chain: Sequence[str] = (), step: int = 0
) -> None:
    """Opens a round for its cohort, or for those in a chain; without any member, the training fails.

    A round that has to wait for connections, or for participants, becomes pending instead: `open_pending` opens it.

    In a chain, `step` counts the rounds since the last version in which models changed hands.
    """
    spec = to_spec(training.spec)
    if state_of(training) is not kind.training_state:
        move(training, kind.training_state, now)
    row = RoundRow(
        training_id=training.training_id,
        number=number,
        kind=kind.name,
        state=RoundState.PENDING.value,
        epoch=0,
        step=step,
        attempt=1,
        model_version=training.model_version,
        members=0,
        arrived=0,
        failed=0,
        expected=0,
        num_examples=0,
        open_time=now,
    )
    cohort, stages = kind.cohort(spec), kind.stages(spec, step)
    if chain:
        _open(training, row, enter_cohort(training.training_id, number, chain, now), now, insert)
    elif cohort is None and (stages is None or not stages.is_demanding):
        _open(training, row, _enter_all(training.training_id, number, now), now, insert)
    elif (cohort is not None and cohort.waits) or not open_pending(training, row, None, now, insert):
        # It is pending, until the server knows who is connected, or there are enough for its aggregation.
        training.round = number
        save(training)
        insert(row)


def open_pending(
    training: TrainingRow,
    row: RoundRow,
    connected: Collection[str] | None,
    now: datetime,
    write: Callable[[RoundRow], None] = save,
) -> bool:
    """Opens a pending round for a cohort; without a participant that has the labels, the training fails.

    Args:
        training: The training.
        row: Its current round.
        connected: The participants that are connected; None if that does not matter.
        now: The present time.
        write: Stores the row.

    Returns:
        Whether the round is pending no longer. It is, if only connected participants are asked and none of them has the
        labels, and if the aggregation needs others, or more than it would ask.
    """
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    given, stages = kind.cohort(spec), kind.stages(spec, row.step)
    cohort = given or Cohort()
    registered = list_eligible(row.training_id, cohort.labels)
    if not registered:
        message = "no participants with the cohort's labels are left" if cohort.labels else "no participants are left"
        fail(training, TrainingFailure("NO_PARTICIPANTS", message), now)
        return True
    eligible = _available(cohort, registered, connected)
    if not eligible:
        return False
    row.population = len(registered)
    if stages is not None and stages.samples(cohort) and cohort.fraction is not None:
        chosen = draw_independently(cohort.seed, row.training_id, row.number, row.attempt, eligible, cohort.fraction)
        needed = len(chosen)
    else:
        needed = cohort.needed(len(registered))
        chosen = _draw(row, cohort, eligible, cohort.asked(needed), _required(stages))
        if stages is not None and stages.lack(chosen) is not None:
            return False
    facts: dict[str, Any] = {}
    if given is not None:
        row.needed = needed if cohort.is_drawn else None
        row.eligible, row.chosen = len(eligible), len(chosen)
        facts = _draw_facts(cohort, row, chosen)
    members = enter_cohort(row.training_id, row.number, chosen, now)
    _open(training, row, members, now, write, **facts)
    return True


def draw_more(
    training: TrainingRow, row: RoundRow, connected: Collection[str] | None, now: datetime
) -> tuple[list[str], dict[str, Any]]:
    """Adds members to a round that is repeated; the round has the number of its new attempt.

    Of a cohort that is drawn, as many are drawn as updates are missing; else everybody joins who can.

    Returns:
        The new members, and what the audit log has of their draw.
    """
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    cohort, stages = kind.cohort(spec) or Cohort(), kind.stages(spec, row.step)
    if stages is not None and stages.differential_privacy is not None:
        # Whoever joined would take part with a larger probability than is accounted: there is no draw.
        return [], {}
    others = sorted(set(list_eligible(row.training_id, cohort.labels)) - all_members(row))
    eligible = _available(cohort, others, connected)
    missing = max(0, (row.needed or 0) - row.arrived)
    joining = _draw(row, cohort, eligible, cohort.asked(missing), _required(stages))
    enter_cohort(row.training_id, row.number, joining, now)
    if row.chosen is None:
        return joining, {}
    row.eligible, row.chosen = len(eligible), row.chosen + len(joining)
    return joining, _draw_facts(cohort, row, joining)


def _draw_facts(cohort: Cohort, row: RoundRow, chosen: Sequence[str]) -> dict[str, Any]:
    """Returns what the audit log has of a draw; a seed as text, since many readers of JSON have no such numbers."""
    facts: dict[str, Any] = {"eligible": row.eligible}
    if cohort.is_drawn:
        facts |= {"seed": str(cohort.seed), "needed": row.needed, "chosen": list(chosen)}
    return facts


def _available(cohort: Cohort, user_ids: Sequence[str], connected: Collection[str] | None) -> Sequence[str]:
    if not cohort.available_only or connected is None:
        return user_ids
    return [user_id for user_id in user_ids if user_id in connected]


def _draw(
    row: RoundRow, cohort: Cohort, eligible: Sequence[str], count: int, required: Collection[str] = ()
) -> list[str]:
    """Draws members; those without whom there is no aggregate are always chosen, and the others are drawn."""
    if not cohort.is_drawn:
        return list(eligible)
    always = set(required) & set(eligible)
    others, count = set(eligible) - always, max(0, count - len(always))
    return sorted([*always, *draw(cohort.seed, row.training_id, row.number, row.attempt, others, count)])


def _required(stages: Aggregation | None) -> tuple[str, ...]:
    return () if stages is None else stages.rule.required_users()


def _open(
    training: TrainingRow,
    row: RoundRow,
    members: int,
    now: datetime,
    write: Callable[[RoundRow], None],
    **facts: Any,
) -> None:
    """Opens a round whose members have entered its cohort; without any, the training fails.

    A round for which no participant was drawn independently of others is closed at once: its result is noise.
    """
    kind, spec = KINDS[row.kind], to_spec(training.spec)
    stages = kind.stages(spec, row.step)
    is_empty = not members and stages is not None and stages.samples(kind.cohort(spec))
    if not members and not is_empty:
        fail(training, TrainingFailure("NO_PARTICIPANTS", "no participants are left"), now)
        return
    policy = kind.policy(spec)
    row.state = (RoundState.AGGREGATING if is_empty else RoundState.OPEN).value
    row.epoch += is_empty
    row.members = members
    row.population = row.population or members
    row.expected = expected_updates(policy, members, 0, row.needed)
    row.open_time = now
    row.deadline = None if policy.deadline is None else now + policy.deadline
    training.round = row.number
    write(row)
    charge(training, stages)
    config = given_config(row.training_id, row)
    record(
        "round_opened",
        training,
        subject=row.number,
        kind=kind.public_name,
        version=row.model_version,
        members=members,
        notes={"deadline": row.deadline},
        **facts,
        **config,
    )
    started = round_started(training, row, is_configured=bool(config))
    append_event(training, started, now, audience=COHORT, number=row.number)
    if is_empty:
        record("round_closed", training, subject=row.number, notes={"arrived": 0, "members": members})
    reached("round.opened")


def round_started(training: TrainingRow, row: RoundRow, *, is_configured: bool | None = None) -> RoundStarted:
    """Returns what a round tells its cohort; whether it has a configuration is read unless it is known."""
    if is_configured is None:
        is_configured = has_config(training.training_id, row.number)
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    request = kind.request(spec, row.step)
    return RoundStarted(
        round=row.number,
        kind=kind.public_name,
        model=model_info(training.model_id, row.model_version),
        deadline=row.deadline,
        aggregation=spec.aggregation.for_participants(),
        metric_names=spec.metric_names,
        local_rounds=request.local_rounds,
        assigned=request.assigned,
        swag=request.swag,
        attempt=row.attempt,
        transport=request.transport,
        tensors=spec.tensors,
        is_configured=is_configured,
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
