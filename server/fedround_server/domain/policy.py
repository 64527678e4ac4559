"""When a round closes, and what a missed deadline does: pure functions."""

import enum
from dataclasses import dataclass
from datetime import timedelta


class LateUpdates(enum.Enum):
    """What happens to an update that arrives after its round was closed."""

    REJECT = "REJECT"


class OnMissed(enum.Enum):
    """What happens to a round that reaches its deadline with fewer updates than it needs."""

    FAIL = "FAIL"
    RETRY = "RETRY"


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """When a round closes.

    Attributes:
        min_updates: How many updates close the round; 0 means one from every member of the cohort.
        deadline: How long a round may stay open; None means without limit.
        late_updates: What happens to updates that come too late.
        on_missed: What happens to a round that reaches its deadline with too few.
        max_retries: How many times such a round is repeated; 0 unless on_missed is RETRY.
    """

    min_updates: int = 0
    deadline: timedelta | None = None
    late_updates: LateUpdates = LateUpdates.REJECT
    on_missed: OnMissed = OnMissed.FAIL
    max_retries: int = 0

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


def expected_updates(policy: RoundPolicy, cohort_size: int) -> int:
    """Returns how many updates close a round of a cohort."""
    return min(policy.min_updates, cohort_size) if policy.min_updates else cohort_size


def judge(arrived: int, expected: int, *, due: bool, last: bool = True) -> Verdict:
    """Returns what is to be done with an open round; evaluated on every update, deadline, removal and start-up.

    Args:
        arrived: Updates that count.
        expected: How many close the round; 0 when the cohort is empty.
        due: Whether the deadline has passed.
        last: Whether this is the last attempt.
    """
    if expected > 0 and arrived >= expected:
        return Verdict.CLOSE
    if expected == 0:
        return Verdict.FAIL
    if due:
        return Verdict.FAIL if last else Verdict.REPEAT
    return Verdict.WAIT
