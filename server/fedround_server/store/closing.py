"""How open rounds end, on every cause alike; runs inside a verb's transaction, behind a lock of its training."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fedround_server.domain.event import ClientRemoved, RoundExtended
from fedround_server.domain.round import RoundKind, RoundState, Verdict, expected_updates, judge
from fedround_server.domain.training import MISSING, RoundPolicy
from fedround_server.failpoints import reached
from fedround_server.store import ledger, steps
from fedround_server.store.noting import note
from fedround_server.store.prepared import among
from fedround_server.store.rows import to_spec
from fedround_server.store.schema import CohortRow, ParticipantRow, RoundRow, TrainingRow, UserRow


def evaluate(training: TrainingRow, row: RoundRow | None, now: datetime, *, due: bool = False) -> bool:
    """Applies the close policy to the current round, if it is open.

    A round that is due with too few updates is repeated, or the training fails, as its policy says. A round whose
    cohort has left is abandoned, and the next one of its kind is opened for those who were registered meanwhile; they
    begin a chain anew.

    Args:
        training: The training, locked.
        row: Its current round, as it is now; None if there is none.
        now: The time to write.
        due: Whether the round's deadline has passed.

    Returns:
        Whether this call closed the round: then the caller has its aggregation started.
    """
    if row is None or row.state != RoundState.OPEN.value or not steps.state_of(training).is_running:
        return False
    policy = to_spec(training.spec).round_policy
    expected = expected_updates(policy, row.members)
    if expected != row.expected:
        RoundRow.update(expected=expected).where(_is(row)).execute()
    if not row.members:
        steps.abandon(training)
        steps.open_round(training, row.number + 1, RoundKind(row.kind), now)
        return False
    verdict = judge(row.arrived, expected, due=due, last=row.attempt >= policy.max_attempts)
    if verdict is Verdict.CLOSE:
        return _close(training, row)
    if verdict is Verdict.REPEAT:
        _repeat(training, row, policy, now)
    elif verdict is Verdict.FAIL:
        steps.fail(training, "DEADLINE_MISSED", _who_is_missing(row, expected), now)
    return False


def leave(training: TrainingRow, user_ids: Sequence[str], now: datetime) -> bool:
    """Removes participants; their updates of the open round don't count, and the round is judged anew.

    Returns:
        Whether that closed the round.
    """
    for user_id in sorted(user_ids):
        training.num_participants -= 1
        note("client_removed", training, subject=user_id)
        sequence = steps.append(training, ClientRemoved(user_id), now, audience=user_id)
        ParticipantRow.update(remove_time=now, until_sequence=sequence).where(
            ParticipantRow.training_id == training.training_id, ParticipantRow.user_id == user_id
        ).execute()
    row = steps.find_round(training.training_id, training.round)
    if row is None or row.state != RoundState.OPEN.value:
        return False
    theirs = [update for update in steps.counted(row.training_id, row.number) if update.user_id in set(user_ids)]
    ledger.supersede(training, theirs, "participant_removed")
    CohortRow.update(removed=True).where(
        CohortRow.training_id == training.training_id,
        CohortRow.number == row.number,
        among(CohortRow.user_id, user_ids),
    ).execute()
    steps.recount(row)
    return evaluate(training, row, now)


def _close(training: TrainingRow, row: RoundRow) -> bool:
    """Closes an open round; of several callers exactly one is answered True."""
    closing = RoundRow.update(state=RoundState.AGGREGATING.value, epoch=RoundRow.epoch + 1)
    closed = bool(closing.where(_is(row), RoundRow.state == RoundState.OPEN.value).execute())
    if closed:
        note("round_closed", training, subject=row.number)
    reached("round.closed")
    return closed


def _repeat(training: TrainingRow, row: RoundRow, policy: RoundPolicy, now: datetime) -> None:
    """Repeats a round, with the updates that it has, and lets those in who were registered meanwhile.

    Nobody joins a chain: there is no model to deal to them.
    """
    joining = [] if row.step else sorted(set(steps.participant_ids(row.training_id)) - _ever_in(row))
    steps.enter(row.training_id, row.number, joining, now)
    steps.recount(row)
    row.attempt += 1
    row.deadline = None if policy.deadline is None else now + policy.deadline
    row.expected = expected_updates(policy, row.members)
    RoundRow.update(attempt=row.attempt, deadline=row.deadline, expected=row.expected).where(_is(row)).execute()
    facts = {"attempt": row.attempt, "joined": joining, "members": row.members}
    note("round_extended", training, subject=row.number, **facts)
    extended = RoundExtended(row.number, row.attempt, row.deadline, row.arrived, row.expected)
    steps.append(training, extended, now, audience=steps.COHORT, number=row.number)
    for user_id in joining:
        steps.append(training, steps.round_started(training, row), now, audience=user_id)


def _ever_in(row: RoundRow) -> set[str]:
    """Returns who is, or was, in a round's cohort: who left it and came back waits for the next one."""
    rows = CohortRow.select(CohortRow.user_id).where(
        CohortRow.training_id == row.training_id, CohortRow.number == row.number
    )
    return {member.user_id for member in rows}


def _missing(row: RoundRow) -> list[str]:
    """Returns the present members of a round's cohort whose update is missing."""
    present = {
        member.user_id
        for member in CohortRow.select(CohortRow.user_id).where(
            CohortRow.training_id == row.training_id, CohortRow.number == row.number, ~CohortRow.removed
        )
    }
    here = {update.user_id for update in steps.counted(row.training_id, row.number)}
    return sorted(present - here)


def _names(user_ids: Sequence[str]) -> list[str]:
    """Returns users by the names that people know."""
    rows = UserRow.select(UserRow.name).where(among(UserRow.user_id, user_ids)).order_by(UserRow.name)
    return [row.name for row in rows]


def _who_is_missing(row: RoundRow, expected: int) -> str:
    missing = _names(_missing(row))
    shown = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
    tries = f" {row.attempt} times, at last" if row.attempt > 1 else ""
    return f"round {row.number} reached its deadline{tries} with {row.arrived} of {expected} updates{MISSING}{shown}"


def _is(row: RoundRow) -> Any:
    return (RoundRow.training_id == row.training_id) & (RoundRow.number == row.number)
