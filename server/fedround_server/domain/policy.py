"""When a round closes, and what a missed deadline does: pure functions."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median


class LateUpdates(enum.Enum):
    """What happens to an update that arrives after its round was closed."""

    REJECT = "REJECT"


class OnMissed(enum.Enum):
    """What happens to a round that reaches its deadline with fewer updates than it needs."""

    FAIL = "FAIL"
    RETRY = "RETRY"


class OnFailure(enum.Enum):
    """What happens if a participant reports that it cannot deliver in a round."""

    CONTINUE = "CONTINUE"
    FAIL = "FAIL"


RETURN_TIME = timedelta(seconds=3)
"""How long a round waits for a connection of a participant that failed in the last round that had asked it."""

UNTIL_DEADLINE = timedelta.max
"""A value of wait_after_min: the round waits for everybody, and min_updates are enough at the deadline only."""


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """When a round closes, and whom it waits for.

    Attributes:
        min_updates: How many updates close the round; 0 means one from every member of the cohort.
        deadline: How long a round may stay open; None means without limit.
        late_updates: What happens to updates that come too late.
        on_missed: What happens to a round that reaches its deadline with too few.
        max_retries: How many times such a round is repeated; 0 unless on_missed is RETRY.
        on_failure: What happens if a participant reports a failure.
        absent_after: How long a participant may be without a connection before a round no longer waits for it; None
            means without limit.
        wait_after_min: How long a round that has min_updates waits for those that are under way.
        wait_fraction: It waits at least for this part of the median time that earlier rounds took.
    """

    min_updates: int = 0
    deadline: timedelta | None = None
    late_updates: LateUpdates = LateUpdates.REJECT
    on_missed: OnMissed = OnMissed.FAIL
    max_retries: int = 0
    on_failure: OnFailure = OnFailure.CONTINUE
    absent_after: timedelta | None = None
    wait_after_min: timedelta = timedelta(0)
    wait_fraction: float = 0.0

    @property
    def waits_after_min(self) -> bool:
        """Whether a round that has min_updates waits for those that are under way."""
        return self.min_updates > 0 and (self.wait_after_min > timedelta(0) or self.wait_fraction > 0)

    @property
    def max_attempts(self) -> int:
        """How many attempts a round has."""
        return 1 + self.max_retries


class Verdict(enum.Enum):
    """What is to be done with an open round."""

    WAIT = "WAIT"
    CLOSE = "CLOSE"
    REPEAT = "REPEAT"
    FAIL = "FAIL"


def enough_updates(policy: RoundPolicy, members: int, failed: int = 0, needed: int | None = None) -> int:
    """Returns how many updates are enough for a round that need not wait any longer.

    Args:
        policy: The policy of the round.
        members: The size of the round's cohort.
        failed: How many of them have failed or are absent.
        needed: How many the round needs, if its cohort is larger than that; None for all members.
    """
    most = members if needed is None else min(needed, members)
    return min(policy.min_updates, most) if policy.min_updates else min(most, members - failed)


def expected_updates(policy: RoundPolicy, members: int, failed: int = 0, needed: int | None = None) -> int:
    """Returns how many updates close a round at once; the arguments are those of `enough_updates`."""
    enough = enough_updates(policy, members, failed, needed)
    if not policy.waits_after_min:
        return enough
    return max(enough, min(members if needed is None else needed, members - failed))


def judge(
    arrived: int,
    expected: int,
    *,
    due: bool,
    last: bool = True,
    left: int | None = None,
    enough: int | None = None,
    waited: bool = False,
) -> Verdict:
    """Returns what is to be done with an open round; evaluated on every update, failure, deadline, removal and start.

    Args:
        arrived: Updates that count.
        expected: How many close the round at once; 0 when the cohort is empty, or all of it has failed.
        due: Whether the deadline has passed.
        last: Whether this is the last attempt.
        left: How many members have neither submitted nor failed; None for all whose updates are missing.
        enough: How many are enough at the deadline, or once the round has waited; None for as many as expected.
        waited: Whether the time has passed that the round waits once it has enough.
    """
    if expected > 0 and arrived >= (expected if enough is None or not (due or waited) else enough):
        return Verdict.CLOSE
    if expected == 0 or left == 0:
        return Verdict.FAIL
    if due:
        return Verdict.FAIL if last else Verdict.REPEAT
    return Verdict.WAIT


def waiting_time(policy: RoundPolicy, durations: Sequence[timedelta]) -> timedelta | None:
    """Returns how long a round that has enough updates waits for those that are under way.

    Args:
        policy: The policy of the round.
        durations: How long earlier rounds took, for wait_fraction.

    Returns:
        None for until its deadline.
    """
    if policy.wait_after_min == UNTIL_DEADLINE:
        return None
    seconds = median(duration.total_seconds() for duration in durations) if durations else 0.0
    return max(policy.wait_after_min, timedelta(seconds=policy.wait_fraction * seconds))


def patience(policy: RoundPolicy, *, failed_before: bool) -> timedelta | None:
    """Returns how long a participant may be without a connection before a round no longer waits for it.

    Args:
        policy: The policy of the round.
        failed_before: Whether the participant failed or was absent in the last round that had asked it.

    Returns:
        None for without limit.
    """
    limits = [policy.absent_after, RETURN_TIME if failed_before else None]
    return min((limit for limit in limits if limit is not None), default=None)
