"""What is known of a round, for its actor; runs inside verbs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from peewee import JOIN

from fedround_server.domain.rejected_update import sum_by_reason
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import MemberPage, RegisteredParticipant, RoundState, RoundView
from fedround_server.store.queries.participant import list_eligible, present_participants
from fedround_server.store.queries.round import lack
from fedround_server.store.queries.round_members import member_times, page_members, rejected_updates
from fedround_server.store.tables.mapping import to_round, to_spec
from fedround_server.store.tables.schema import LastSeenRow, ParticipantRow, RoundRow, TrainingRow, UserRow


def summaries(training: TrainingRow, rows: Sequence[RoundRow]) -> list[RoundView]:
    """Returns rounds of a training without what is known of single members.

    The number of queries depends neither on the number of rounds nor on that of participants: of the rounds of a
    training, one at most is open.
    """
    spec, registered = to_spec(training.spec), tuple(list_eligible(training.training_id, {}))
    found = []
    for row in rows:
        kind, is_pending = KINDS[row.kind], row.state == RoundState.PENDING.value
        is_current = row.number == training.round
        lacking = lack(training, row) if row.state == RoundState.OPEN.value else None
        if is_pending and (stages := kind.stages(spec, row.step)) is not None:
            lacking = stages.lack(registered, "registered participants")
        view = RoundView(
            to_round(row),
            kind.policy(spec),
            paused=is_current and training.paused,
            stopped=is_current and training.stop is not None,
            cohort=kind.cohort(spec),
            participant_ids=registered,
            wanted=kind.wanted(spec, row.step) if is_pending else 0,
            lack=lacking,
        )
        found.append(view)
    return found


def view(training: TrainingRow, row: RoundRow, page: MemberPage) -> RoundView:
    """Returns a round with a page of its present members, and what the first page says of the others."""
    rejected = rejected_updates(row)
    (found,) = summaries(training, [row])
    is_first = page.after is None
    return replace(
        found,
        members=page_members(row, page, rejected),
        rejected_updates=sum_by_reason(one for found in rejected.values() for one in found),
        times=member_times(row) if is_first and row.state == RoundState.OPEN.value else (),
        awaited=_registered(row.training_id) if is_first and row.state == RoundState.PENDING.value else (),
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
