"""Reads of the members of a round's cohort, in pages; run inside the verb `explain`."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from peewee import JOIN, Case

from fedround_server.domain.forecast import HISTORY
from fedround_server.domain.rejected_update import RejectedUpdate
from fedround_server.domain.rounds.round import MemberOrder, MemberPage, MemberTimes, RoundMember, RoundState
from fedround_server.store.db.compiled import in_array
from fedround_server.store.queries.failure import OF_MEMBER, to_failure
from fedround_server.store.queries.round import SUBMITTED, update_facts
from fedround_server.store.tables.failure_schema import ParticipantFailureRow, RejectedUpdateRow
from fedround_server.store.tables.schema import CohortRow, LastSeenRow, ParticipantRow, RoundRow, UpdateRow, UserRow

Rejections = Mapping[str, Sequence[RejectedUpdate]]


def page_members(row: RoundRow, page: MemberPage, rejected: Rejections) -> tuple[RoundMember, ...]:
    """Returns a page of the present members of a round, and the first one behind it, by a constant number of queries.

    Args:
        row: The round.
        page: The page.
        rejected: The rejected updates of the round, by user.
    """
    as_of = page.as_of or datetime.max.replace(tzinfo=UTC)
    order = Case(
        None,
        [
            (ParticipantFailureRow.fail_time <= as_of, MemberOrder.FAILED.value),
            (UpdateRow.accept_time <= as_of, MemberOrder.ARRIVED.value),
        ],
        MemberOrder.MISSING.value,
    )
    rows = (
        CohortRow.select(
            CohortRow.user_id,
            CohortRow.ask_time,
            UserRow.name.alias("name"),
            UpdateRow.accept_time.alias("arrive_time"),
            LastSeenRow.seen_time.alias("seen_time"),
            ParticipantRow.rounds_left_out.alias("rounds_left_out"),
            ParticipantFailureRow.reason.alias("reason"),
            ParticipantFailureRow.message.alias("message"),
            ParticipantFailureRow.fail_time.alias("fail_time"),
            order.alias("place"),
        )
        .join(UserRow, on=(UserRow.user_id == CohortRow.user_id))
        .join(
            ParticipantRow,
            on=((ParticipantRow.training_id == CohortRow.training_id) & (ParticipantRow.user_id == CohortRow.user_id)),
        )
        .join(UpdateRow, JOIN.LEFT_OUTER, on=SUBMITTED)
        .join(ParticipantFailureRow, JOIN.LEFT_OUTER, on=OF_MEMBER)
        .join(LastSeenRow, JOIN.LEFT_OUTER, on=(LastSeenRow.user_id == CohortRow.user_id))
        .where(CohortRow.training_id == row.training_id, CohortRow.number == row.number, ~CohortRow.removed)
        .order_by(order, UserRow.name)
        .limit(page.limit + 1)
    )
    if page.after is not None:
        place, name = page.after
        rows = rows.where((order > place.value) | ((order == place.value) & (UserRow.name > name)))
    found: list[dict[str, Any]] = list(rows.dicts())  # type: ignore[arg-type]  # the stubs don't know what dicts() does
    is_open = row.state == RoundState.OPEN.value
    missing = [one["user_id"] for one in found if one["arrive_time"] is None]
    durations = _durations(row, missing) if is_open and missing else {}
    report = update_facts(row.training_id, row.number) if row.state == RoundState.DONE.value else {}
    return tuple(
        RoundMember(
            user_id=one["user_id"],
            name=one["name"],
            ask_time=one["ask_time"],
            arrive_time=one["arrive_time"],
            seen_time=one["seen_time"],
            durations=tuple(durations.get(one["user_id"], ())),
            rejected_updates=tuple(rejected.get(one["user_id"], ())),
            failure=None if one["reason"] is None else to_failure(row.number, one),
            rounds_left_out=one["rounds_left_out"],
            report=report.get(one["user_id"]),
            order=MemberOrder(one["place"]),
        )
        for one in found
    )


def member_times(row: RoundRow) -> tuple[MemberTimes, ...]:
    """Returns when all present members of a round were asked and submitted, for a forecast of its end."""
    rows: Iterable[tuple[Any, ...]] = (
        CohortRow.select(CohortRow.user_id, CohortRow.ask_time, UpdateRow.accept_time)
        .join(UpdateRow, JOIN.LEFT_OUTER, on=SUBMITTED)
        .where(CohortRow.training_id == row.training_id, CohortRow.number == row.number, ~CohortRow.removed)
        .tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    found = list(rows)
    durations = _durations(row, [user_id for user_id, _, arrive_time in found if arrive_time is None])
    return tuple(MemberTimes(asked, arrived, tuple(durations.get(user_id, ()))) for user_id, asked, arrived in found)


def rejected_updates(row: RoundRow) -> Rejections:
    """Returns by user what was rejected in a round."""
    rows = (
        RejectedUpdateRow.select()
        .where(RejectedUpdateRow.training_id == row.training_id, RejectedUpdateRow.number == row.number)
        .order_by(RejectedUpdateRow.user_id, RejectedUpdateRow.reason)
    )
    found: dict[str, list[RejectedUpdate]] = defaultdict(list)
    for one in rows:
        found[one.user_id].append(RejectedUpdate(one.reason, one.count, one.last_time, one.message))
    return found


def _durations(row: RoundRow, user_ids: Collection[str]) -> Mapping[str, list[timedelta]]:
    """Returns by user how long some users took in the latest rounds of the kind: from being asked to an update."""
    latest = (
        RoundRow.select(RoundRow.number)
        .where(RoundRow.training_id == row.training_id, RoundRow.kind == row.kind, RoundRow.number < row.number)
        .order_by(RoundRow.number.desc())
        .limit(HISTORY)
    )
    took = (UpdateRow.accept_time - CohortRow.ask_time).converter(lambda count: timedelta(microseconds=count))
    taken: Iterable[tuple[Any, ...]] = (
        UpdateRow.select(UpdateRow.user_id, took)
        .join(CohortRow, on=SUBMITTED)
        .where(
            UpdateRow.training_id == row.training_id,
            UpdateRow.number.in_([old.number for old in latest]),
            in_array(UpdateRow.user_id, user_ids),
        )
        .tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    found: dict[str, list[timedelta]] = defaultdict(list)
    for user_id, duration in taken:
        found[user_id].append(duration)
    return found
