"""Closes, repeats and ends open rounds, on every cause alike."""

from collections.abc import Sequence
from datetime import datetime

from fedround_server.domain.event import RoundExtended, UpdateLost
from fedround_server.domain.failure import PARTICIPANTS_FAILED
from fedround_server.domain.policy import RoundPolicy, Verdict, expected_updates, judge
from fedround_server.domain.rejected_update import UPDATE_LOST
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingFailure
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import save
from fedround_server.store.queries.failure import list_failures
from fedround_server.store.queries.participant import participant_ids
from fedround_server.store.queries.round import all_members, count_members, get_round, missing_members
from fedround_server.store.queries.user import user_names
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import COHORT, CohortRow, RoundRow, TrainingRow, UpdateRow
from fedround_server.store.transitions import contributions
from fedround_server.store.transitions.end_training import abandon, fail
from fedround_server.store.transitions.next_round import go_on
from fedround_server.store.transitions.open_round import enter_cohort, round_started
from fedround_server.store.transitions.rejected_updates import count_rejected
from fedround_server.store.transitions.training import append_event, state_of


def evaluate(training: TrainingRow, row: RoundRow | None, now: datetime, *, due: bool = False) -> bool:
    """Applies the close policy to the current round, if it is open; returns whether this call closed it.

    A round that is due with too few updates is repeated, or the training fails, as its policy says. A round whose
    cohort has left is abandoned, and the next one of its kind is opened for those who were registered meanwhile, unless
    the training is paused or stops; they begin a chain anew. If everybody who is left has failed, and too few updates
    arrived, the training fails. The caller has the aggregation of a closed round started.
    """
    if row is None or row.state != RoundState.OPEN.value or not state_of(training).is_running:
        return False
    policy = to_spec(training.spec).round_policy
    expected = expected_updates(policy, row.members, row.failed)
    if expected != row.expected:
        row.expected = expected
        save(row)
    if not row.members:
        abandon(training)
        go_on(training, get_round(row.training_id, row.number), now)
        return False
    left = row.members - row.failed - row.arrived
    verdict = judge(row.arrived, expected, due=due, last=row.attempt >= policy.max_attempts, left=left)
    if verdict is Verdict.CLOSE:
        return _close(training, row)
    if verdict is Verdict.REPEAT:
        _repeat(training, row, policy, now)
    elif verdict is Verdict.FAIL:
        fail(training, _deadline_missed(row, expected) if left else participants_failed(row), now)
    return False


def _close(training: TrainingRow, row: RoundRow) -> bool:
    """Closes an open round; of several callers exactly one is answered True."""
    closing = RoundRow.update(state=RoundState.AGGREGATING.value, epoch=RoundRow.epoch + 1)
    this = (RoundRow.training_id == row.training_id) & (RoundRow.number == row.number)
    closed = bool(closing.where(this, RoundRow.state == RoundState.OPEN.value).execute())
    if closed:
        record("round_closed", training, subject=row.number)
    reached("round.closed")
    return closed


def _repeat(training: TrainingRow, row: RoundRow, policy: RoundPolicy, now: datetime) -> None:
    """Repeats a round, with the updates that it has, and lets those in who were registered meanwhile.

    In a daisy chain no participant joins: there is no model to assign to it.
    """
    joining = [] if row.step else sorted(set(participant_ids(row.training_id)) - all_members(row))
    enter_cohort(row.training_id, row.number, joining, now)
    recount(row)
    row.attempt += 1
    row.deadline = None if policy.deadline is None else now + policy.deadline
    row.expected = expected_updates(policy, row.members, row.failed)
    save(row)
    facts = {"attempt": row.attempt, "joined": joining, "members": row.members}
    record("round_extended", training, subject=row.number, **facts)
    extended = RoundExtended(row.number, row.attempt, row.deadline, row.arrived, row.expected)
    append_event(training, extended, now, audience=COHORT, number=row.number)
    for user_id in joining:
        append_event(training, round_started(training, row), now, audience=user_id)


def reopen(training: TrainingRow, row: RoundRow, lost: Sequence[UpdateRow], now: datetime) -> None:
    """Opens a closed round again without updates whose files are damaged, and repeats it: they are asked for anew.

    Their rows are removed, so that their participants submit as if for the first time; the audit log has them. The
    round does not wait for those that have left since it was closed. The policy decides whether it closes again.
    """
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
    _repeat(training, row, to_spec(training.spec).round_policy, now)
    for update in lost:
        lost_update = UpdateLost(update.update_id, row.number, update.user_id, row.arrived, row.expected)
        append_event(training, lost_update, now, audience=update.user_id)
        message = f"the file of the update {update.update_id} was damaged on the server's disk: it was asked for anew"
        count_rejected(training.training_id, row.number, update.user_id, UPDATE_LOST, message, now)
        if update.user_id in present:
            append_event(training, round_started(training, row), now, audience=update.user_id)
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


def recount(row: RoundRow) -> None:
    """Counts a round's present members, their updates and their failures anew, after its cohort changed."""
    row.members, row.arrived, row.failed = count_members(row)
    save(row)
