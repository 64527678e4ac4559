"""What is known of a round, for its actor; runs inside the verb `explain`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from peewee import JOIN

from fedround_server.domain.forecast import HISTORY
from fedround_server.domain.rejected_update import RejectedUpdate, sum_by_reason
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import RegisteredParticipant, RoundMember, RoundState, RoundView
from fedround_server.store.queries.failure import list_failures
from fedround_server.store.queries.participant import participant_ids, present_participants
from fedround_server.store.queries.round import SUBMITTED, arrival_times, lack, update_facts
from fedround_server.store.tables.failure_schema import RejectedUpdateRow
from fedround_server.store.tables.mapping import to_round, to_spec
from fedround_server.store.tables.schema import (
    CohortRow,
    LastSeenRow,
    ParticipantRow,
    RoundRow,
    TrainingRow,
    UpdateRow,
    UserRow,
)


def view(training: TrainingRow, row: RoundRow) -> RoundView:
    """Returns a round with its present members by name."""
    arrivals = arrival_times(row.training_id, row.number)
    durations = _durations(row) if row.state == RoundState.OPEN.value else {}
    rejected = _rejected_updates(row)
    failures = {one.user_id: one for one in list_failures(row.training_id, row.number)} if row.failed else {}
    report = update_facts(row.training_id, row.number) if row.state == RoundState.DONE.value else {}
    members: Iterable[dict[str, Any]] = (
        CohortRow.select(
            CohortRow.user_id,
            CohortRow.ask_time,
            UserRow.name.alias("name"),
            LastSeenRow.seen_time.alias("seen_time"),
            ParticipantRow.rounds_left_out.alias("rounds_left_out"),
        )
        .join(UserRow, on=(UserRow.user_id == CohortRow.user_id))
        .join(
            ParticipantRow,
            on=((ParticipantRow.training_id == CohortRow.training_id) & (ParticipantRow.user_id == CohortRow.user_id)),
        )
        .join(LastSeenRow, JOIN.LEFT_OUTER, on=(LastSeenRow.user_id == CohortRow.user_id))
        .where(CohortRow.training_id == row.training_id, CohortRow.number == row.number, ~CohortRow.removed)
        .order_by(UserRow.name)
        .dicts()  # type: ignore[assignment]  # the stubs don't know what dicts() does
    )
    found = tuple(
        RoundMember(
            user_id=member["user_id"],
            name=member["name"],
            ask_time=member["ask_time"],
            arrive_time=arrivals.get(member["user_id"]),
            seen_time=member["seen_time"],
            durations=tuple(durations.get(member["user_id"], ())),
            rejected_updates=tuple(rejected.get(member["user_id"], ())),
            failure=failures.get(member["user_id"]),
            rounds_left_out=member["rounds_left_out"],
            report=report.get(member["user_id"]),
        )
        for member in members
    )
    everything = sum_by_reason(one for found in rejected.values() for one in found)
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    is_current = row.number == training.round
    registered, is_pending = tuple(participant_ids(row.training_id)), row.state == RoundState.PENDING.value
    lacking = lack(training, row) if row.state == RoundState.OPEN.value else None
    if is_pending and (stages := kind.stages(spec, row.step)) is not None:
        lacking = stages.lack(registered, "registered participants")
    return RoundView(
        to_round(row),
        kind.policy(spec),
        found,
        everything,
        paused=is_current and training.paused,
        stopped=is_current and training.stop is not None,
        cohort=kind.cohort(spec),
        participant_ids=registered,
        awaited=_registered(row.training_id) if is_pending else (),
        wanted=kind.wanted(spec, row.step) if is_pending else 0,
        lack=lacking,
    )


def _registered(training_id: str) -> tuple[RegisteredParticipant, ...]:
    """Returns the present participants, by name."""
    rows: Iterable[tuple[Any, ...]] = (
        present_participants(training_id, ParticipantRow.user_id, UserRow.name, LastSeenRow.seen_time)
        .join(UserRow, on=(UserRow.user_id == ParticipantRow.user_id))
        .join(LastSeenRow, JOIN.LEFT_OUTER, on=(LastSeenRow.user_id == ParticipantRow.user_id))
        .order_by(UserRow.name)
        .tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    return tuple(RegisteredParticipant(*row) for row in rows)


def _durations(row: RoundRow) -> Mapping[str, list[timedelta]]:
    """Returns by user how long those whose update is missing took in the latest rounds of the kind.

    That is from being asked to an accepted update.
    """
    latest = (
        RoundRow.select(RoundRow.number)
        .where(RoundRow.training_id == row.training_id, RoundRow.kind == row.kind, RoundRow.number < row.number)
        .order_by(RoundRow.number.desc())
        .limit(HISTORY)
    )
    other = UpdateRow.alias()
    here = other.select(other.user_id).where(other.training_id == row.training_id, other.number == row.number)
    took = (UpdateRow.accept_time - CohortRow.ask_time).converter(lambda count: timedelta(microseconds=count))
    taken: Iterable[tuple[Any, ...]] = (
        UpdateRow.select(UpdateRow.user_id, took)
        .join(CohortRow, on=SUBMITTED)
        .where(
            UpdateRow.training_id == row.training_id,
            UpdateRow.number.in_([old.number for old in latest]),
            UpdateRow.user_id.not_in(here),
        )
        .tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    found: dict[str, list[timedelta]] = defaultdict(list)
    for user_id, duration in taken:
        found[user_id].append(duration)
    return found


def _rejected_updates(row: RoundRow) -> Mapping[str, list[RejectedUpdate]]:
    """Returns by user what was refused in a round."""
    rows = (
        RejectedUpdateRow.select()
        .where(RejectedUpdateRow.training_id == row.training_id, RejectedUpdateRow.number == row.number)
        .order_by(RejectedUpdateRow.user_id, RejectedUpdateRow.reason)
    )
    found: dict[str, list[RejectedUpdate]] = defaultdict(list)
    for one in rows:
        found[one.user_id].append(RejectedUpdate(one.reason, one.count, one.last_time, one.message))
    return found
