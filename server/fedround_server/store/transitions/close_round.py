"""Closes, repeats and ends open rounds, on every cause alike."""

from collections.abc import Collection, Sequence
from datetime import datetime

from fedround_server.domain.event import RoundExtended, UpdateLost, WorkNotNeeded
from fedround_server.domain.failure import PARTICIPANTS_FAILED
from fedround_server.domain.policy import (
    RoundPolicy,
    Verdict,
    enough_updates,
    expected_updates,
    judge,
    waiting_time,
)
from fedround_server.domain.rejected_update import UPDATE_LOST
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingFailure
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.lease import lease
from fedround_server.store.db.rows import save
from fedround_server.store.queries.failure import list_failures
from fedround_server.store.queries.participant import participant_ids
from fedround_server.store.queries.round import count_members, get_round, lack, missing_members, round_times
from fedround_server.store.queries.user import user_names
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import COHORT, MISSING, CohortRow, RoundRow, TrainingRow, UpdateRow
from fedround_server.store.transitions import contributions
from fedround_server.store.transitions.end_training import abandon, fail
from fedround_server.store.transitions.next_round import go_on
from fedround_server.store.transitions.open_round import draw_more, round_started
from fedround_server.store.transitions.rejected_updates import count_rejected
from fedround_server.store.transitions.training import append_event, state_of


def evaluate(
    training: TrainingRow,
    row: RoundRow | None,
    now: datetime,
    *,
    due: bool = False,
    waited_until: datetime | None = None,
    connected: Collection[str] | None = None,
) -> bool:
    """Applies the close policy to the current round, if it is open; returns whether this call closed it.

    A round that has enough updates may wait for others, until its wait_end. One that is due with too few updates is
    repeated, or the training fails, as its policy says. A round whose cohort has left is abandoned, and the next one of
    its kind is opened for those who were registered meanwhile, unless the training is paused or stops; they begin a
    chain anew. If everybody who is left has failed, and too few updates arrived, the training fails. A round whose
    updates have no aggregate stays open for others, and is repeated at its deadline, or the training fails. The caller
    has the aggregation of a closed round started.

    Args:
        training: The training.
        row: Its current round.
        now: The present time.
        due: Whether the deadline has passed.
        waited_until: A time that has come by a monotonic clock, although the wall clock may have been set back since.
        connected: Who is connected, for members that join a round that is repeated; None if that is not known.
    """
    if row is None or row.state != RoundState.OPEN.value or not state_of(training).is_running:
        return False
    policy = KINDS[row.kind].policy(to_spec(training.spec))
    expected = expected_updates(policy, row.members, row.failed, row.needed)
    enough = enough_updates(policy, row.members, row.failed, row.needed)
    if expected != row.expected:
        row.expected = expected
        save(row)
    if not row.members:
        abandon(training)
        go_on(training, get_round(row.training_id, row.number), now)
        return False
    left = row.members - row.failed - row.arrived
    verdict = _judge(row, policy, now if waited_until is None else max(now, waited_until), due=due)
    lacking = lack(training, row) if verdict is Verdict.CLOSE else None
    if lacking is not None:
        if (left and not due) or row.attempt < policy.max_attempts:
            # Others may still submit, until its deadline: members, or participants that failed and come back.
            verdict = Verdict.REPEAT if due else Verdict.WAIT
        else:
            fail(training, TrainingFailure("AGGREGATION_FAILED", f"the round cannot be aggregated: {lacking}"), now)
            return False
    if verdict is Verdict.CLOSE:
        return _close(training, row, now)
    if verdict is Verdict.REPEAT:
        _announce(training, row, _repeat(training, row, policy, now, connected), now)
    elif verdict is Verdict.FAIL:
        fail(training, _deadline_missed(row, enough) if left else participants_failed(row), now)
    else:
        _set_wait_end(row, policy, now, waits=row.arrived >= enough and lacking is None)
    return False


def stays_open(training: TrainingRow, row: RoundRow, now: datetime) -> bool:
    """Returns whether `evaluate` changes nothing of an open round; False also if that is not known without a query."""
    policy = KINDS[row.kind].policy(to_spec(training.spec))
    has_enough = row.arrived >= enough_updates(policy, row.members, row.failed, row.needed)
    return (
        row.members > 0
        and row.expected == expected_updates(policy, row.members, row.failed, row.needed)
        and has_enough == (row.wait_end is not None)
        and _judge(row, policy, now, due=False) is Verdict.WAIT
    )


def _judge(row: RoundRow, policy: RoundPolicy, now: datetime, *, due: bool) -> Verdict:
    return judge(
        row.arrived,
        row.expected,
        due=due,
        last=row.attempt >= policy.max_attempts,
        left=row.members - row.failed - row.arrived,
        enough=enough_updates(policy, row.members, row.failed, row.needed),
        waited=row.wait_end is not None and now >= row.wait_end,
    )


def _set_wait_end(row: RoundRow, policy: RoundPolicy, now: datetime, *, waits: bool) -> None:
    """Sets until when an open round waits: from the moment when it has enough updates, for as long as it has."""
    if waits == (row.wait_end is not None):
        return
    time = waiting_time(policy, round_times(row) if policy.wait_fraction else ()) if waits else None
    if time is not None or not waits:
        row.wait_end = None if time is None else now + time
        save(row)


def _close(training: TrainingRow, row: RoundRow, now: datetime) -> bool:
    """Closes an open round, and releases the members that are under way; of several callers one is answered True."""
    closing = RoundRow.update(state=RoundState.AGGREGATING.value, epoch=RoundRow.epoch + 1, keeper=lease.keeper)
    this = (RoundRow.training_id == row.training_id) & (RoundRow.number == row.number)
    closed = bool(closing.where(this, RoundRow.state == RoundState.OPEN.value).execute())
    if closed:
        counts = {"arrived": row.arrived, "members": row.members, "failed": row.failed}
        record("round_closed", training, subject=row.number, notes=counts)
        if _releases(training, row):
            released = WorkNotNeeded(row.number, row.arrived, row.members)
            append_event(training, released, now, audience=MISSING, number=row.number)
    reached("round.closed")
    return closed


def _repeat(
    training: TrainingRow, row: RoundRow, policy: RoundPolicy, now: datetime, connected: Collection[str] | None = None
) -> list[str]:
    """Repeats a round with the updates that it has; those who were registered meanwhile, or are drawn, join it.

    In a daisy chain no participant joins: there is no model to assign to it.

    Returns:
        Who joins; the caller has to tell them.
    """
    row.attempt += 1
    joining, drawn = ([], {}) if row.step else draw_more(training, row, connected, now)
    recount(row)
    row.deadline = None if policy.deadline is None else now + policy.deadline
    row.wait_end = None
    row.expected = expected_updates(policy, row.members, row.failed, row.needed)
    save(row)
    facts = {"attempt": row.attempt, "joined": joining, "members": row.members, **drawn}
    notes = {"arrived": row.arrived, "deadline": row.deadline}
    record("round_extended", training, subject=row.number, notes=notes, **facts)
    extended = RoundExtended(row.number, row.attempt, row.deadline, row.arrived, row.expected)
    append_event(training, extended, now, audience=COHORT, number=row.number)
    return joining


def _announce(training: TrainingRow, row: RoundRow, user_ids: Sequence[str], now: datetime) -> None:
    """Tells members of an open round that it has started."""
    for user_id in user_ids:
        append_event(training, round_started(training, row), now, audience=user_id)


def reopen(
    training: TrainingRow,
    row: RoundRow,
    lost: Sequence[UpdateRow],
    now: datetime,
    connected: Collection[str] | None = None,
) -> None:
    """Opens a closed round again without updates whose files are damaged, and repeats it: they are asked for anew.

    Their rows are removed, so that their participants submit as if for the first time; the audit log has them. The
    round does not wait for those that have left since it was closed. Members that were released when it was closed are
    asked again, too. The policy decides whether it closes again.
    """
    released = _releases(training, row)
    record("round_reopened", training, subject=row.number)
    contributions.supersede(training, lost, "file_damaged")
    present = set(participant_ids(training.training_id))
    for update in lost:
        UpdateRow.delete().where(UpdateRow.update_id == update.update_id).execute()
        CohortRow.update(ask_time=now, removed=update.user_id not in present).where(
            CohortRow.training_id == row.training_id,
            CohortRow.number == row.number,
            CohortRow.user_id == update.user_id,
        ).execute()
        training.stored_bytes -= update.size_bytes
    row.state = RoundState.OPEN.value
    recount(row)
    joining = _repeat(training, row, KINDS[row.kind].policy(to_spec(training.spec)), now, connected)
    for update in lost:
        lost_update = UpdateLost(update.update_id, row.number, update.user_id, row.arrived, row.expected)
        append_event(training, lost_update, now, audience=update.user_id)
        message = f"the file of the update {update.update_id} was damaged on the server's disk: it was asked for anew"
        count_rejected(training.training_id, row.number, update.user_id, UPDATE_LOST, message, now)
    if released:
        append_event(training, round_started(training, row), now, audience=MISSING, number=row.number)
    else:
        asked = [update.user_id for update in lost if update.user_id in present]
        _announce(training, row, [*joining, *asked], now)
    evaluate(training, row, now)


def _deadline_missed(row: RoundRow, expected: int) -> TrainingFailure:
    failed = {one.user_id: one.summary for one in list_failures(row.training_id, row.number)}
    names = user_names([member.user_id for member in missing_members(row)])
    missing = sorted((names | failed).values())
    tries = f" {row.attempt} times, at last" if row.attempt > 1 else ""
    message = f"the round reached its deadline{tries} with {row.arrived} of {expected} updates"
    return TrainingFailure("DEADLINE_MISSED", message, tuple(missing))


def participants_failed(row: RoundRow) -> TrainingFailure:
    """Returns that too many participants of a round have failed, with their names and reasons."""
    failed = tuple(sorted(one.summary for one in list_failures(row.training_id, row.number)))
    message = f"{row.failed} of {row.members} participants failed, {row.arrived} submitted"
    return TrainingFailure(PARTICIPANTS_FAILED, message, failed)


def _releases(training: TrainingRow, row: RoundRow) -> bool:
    """Returns whether members that are under way are told when a round is closed.

    Without a draw, everybody is told of its result, which is enough. With buffering, their work counts in a later one.
    """
    is_last = KINDS[row.kind].buffering(to_spec(training.spec)) is None
    return is_last and row.chosen is not None and row.members > row.failed + row.arrived


def recount(row: RoundRow) -> None:
    """Counts a round's present members, their updates and their failures anew, after its cohort changed."""
    row.members, row.arrived, row.failed = count_members(row)
    save(row)
