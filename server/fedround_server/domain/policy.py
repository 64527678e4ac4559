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


class OnFailure(enum.Enum):
    """What happens if a participant reports that it cannot deliver in a round."""

    CONTINUE = "CONTINUE"
    FAIL = "FAIL"


RETURN_TIME = timedelta(seconds=3)
"""How long a round waits for a connection of a participant that the round before did not wait for."""


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
    """

    min_updates: int = 0
    deadline: timedelta | None = None
    late_updates: LateUpdates = LateUpdates.REJECT
    on_missed: OnMissed = OnMissed.FAIL
    max_retries: int = 0
    on_failure: OnFailure = OnFailure.CONTINUE
    absent_after: timedelta | None = None

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


def expected_updates(policy: RoundPolicy, members: int, failed: int = 0) -> int:
    """Returns how many updates close a round.

    Args:
        policy: The policy of the training.
        members: The size of the round's cohort.
        failed: How many of them have failed or are absent.
    """
    return min(policy.min_updates, members) if policy.min_updates else members - failed


def judge(arrived: int, expected: int, *, due: bool, last: bool = True, left: int | None = None) -> Verdict:
    """Returns what is to be done with an open round; evaluated on every update, failure, deadline, removal and start.

    Args:
        arrived: Updates that count.
        expected: How many close the round; 0 when the cohort is empty, or all of it has failed.
        due: Whether the deadline has passed.
        last: Whether this is the last attempt.
        left: How many members have neither submitted nor failed; None for all whose updates are missing.
    """
    if expected > 0 and arrived >= expected:
        return Verdict.CLOSE
    if expected == 0 or left == 0:
        return Verdict.FAIL
    if due:
        return Verdict.FAIL if last else Verdict.REPEAT
    return Verdict.WAIT


def patience(policy: RoundPolicy, *, failed_before: bool) -> timedelta | None:
    """Returns how long a participant may be without a connection before a round no longer waits for it.

    Args:
        policy: The policy of the training.
        failed_before: Whether the participant had failed or was absent at the end of the round before.

    Returns:
        None for without limit.
    """
    limits = [policy.absent_after, RETURN_TIME if failed_before else None]
    return min((limit for limit in limits if limit is not None), default=None)
