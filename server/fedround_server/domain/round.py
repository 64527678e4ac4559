"""Rounds: one ask-and-collect cycle each, and the policy that closes them."""

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedround_server.domain.rejected_update import RejectedUpdate
from fedround_server.domain.training import OnMissed, RoundPolicy, TrainingSpec, collects, evaluates


class RoundKind(enum.Enum):
    """What a round asks of its cohort."""

    TRAIN = "TRAIN"
    SWAG = "SWAG"
    EVALUATE = "EVALUATE"


class RoundState(enum.Enum):
    """Where a round is in its life."""

    OPEN = "OPEN"
    AGGREGATING = "AGGREGATING"
    DONE = "DONE"
    ABANDONED = "ABANDONED"

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen in it any more."""
        return self in (RoundState.DONE, RoundState.ABANDONED)


@dataclass(frozen=True, slots=True)
class Round:
    """A round.

    Attributes:
        model_version: The version that it started from.
        epoch: Counts closings; an aggregation may commit only under the epoch that it was started with (fencing).
        arrived: Updates or reports of present members of the cohort.
        expected: How many of them close the round.
        step: Rounds since the last model version, in daisy chaining.
        attempt: Which try it is, from 1: a round that misses its deadline may be repeated.
    """

    training_id: str
    number: int
    kind: RoundKind
    state: RoundState
    epoch: int
    model_version: int
    arrived: int
    expected: int
    open_time: datetime
    deadline: datetime | None
    done_time: datetime | None
    step: int = 0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class UnfinishedRound:
    """A round that something is still to happen in: its close, or its aggregation."""

    training_id: str
    number: int
    state: RoundState
    attempt: int
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class RoundMember:
    """A member of a round's cohort.

    Attributes:
        ask_time: Since when it is in the round.
        arrive_time: When its update or report was accepted; None while that is missing.
        seen_time: When it was seen last, as far as that is stored.
        durations: If its update of an open round is missing, what it took in earlier rounds of the kind, from being
            asked to an accepted update.
        refusals: What it submitted in vain.
    """

    user_id: str
    name: str
    ask_time: datetime
    arrive_time: datetime | None
    seen_time: datetime | None = None
    durations: tuple[timedelta, ...] = ()
    refusals: tuple[RejectedUpdate, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundView:
    """A round, the policy that it follows, and its present members, as its actor may see them.

    Attributes:
        refusals: What was submitted in vain, also by others than present members.
    """

    round: Round
    policy: RoundPolicy
    members: tuple[RoundMember, ...]
    refusals: tuple[RejectedUpdate, ...] = ()


class WaitRule(enum.Enum):
    """What holds a round."""

    ALL_UPDATES = "ALL_UPDATES"
    MIN_UPDATES = "MIN_UPDATES"
    AGGREGATION = "AGGREGATION"


class Verdict(enum.Enum):
    """What the close policy says of an open round."""

    WAIT = "WAIT"
    CLOSE = "CLOSE"
    REPEAT = "REPEAT"
    FAIL = "FAIL"


def expected_updates(policy: RoundPolicy, cohort_size: int) -> int:
    """Returns how many updates close a round of that cohort."""
    return min(policy.min_updates, cohort_size) if policy.min_updates else cohort_size


def wait_rule(view: RoundView) -> WaitRule | None:
    """Tells what holds a round; None if it is over."""
    if view.round.state is RoundState.AGGREGATING:
        return WaitRule.AGGREGATION
    if view.round.state is not RoundState.OPEN:
        return None
    return WaitRule.MIN_UPDATES if view.round.expected < len(view.members) else WaitRule.ALL_UPDATES


def when_missed(view: RoundView) -> OnMissed | None:
    """Tells what happens if an open round reaches its deadline as it is; None if it has none, or is not open."""
    if view.round.state is not RoundState.OPEN or view.round.deadline is None:
        return None
    return OnMissed.RETRY if view.round.attempt < view.policy.max_attempts else OnMissed.FAIL


def judge(arrived: int, expected: int, *, due: bool, last: bool = True) -> Verdict:
    """The close policy; evaluated on every cause: update, deadline, removed participant, start-up.

    Args:
        arrived: Updates that count.
        expected: How many close the round; 0 when the cohort is empty.
        due: Whether the deadline has passed.
        last: Whether the round may not be repeated any more.
    """
    if expected > 0 and arrived >= expected:
        return Verdict.CLOSE
    if expected == 0:
        return Verdict.FAIL
    if due:
        return Verdict.FAIL if last else Verdict.REPEAT
    return Verdict.WAIT


def next_round(spec: TrainingSpec, kind: RoundKind, model_version: int, *, stop: bool = False) -> RoundKind | None:
    """Tells what follows a round: each new version is evaluated, then its moments are collected, then comes the next.

    Args:
        spec: What to train.
        kind: The kind of the round that is done.
        model_version: The model's version after that round.
        stop: Whether the training makes no more versions, its target notwithstanding.

    Returns:
        The kind of the next round; None when the training is complete.
    """
    last = stop or model_version >= spec.target_num_updates
    if kind is RoundKind.TRAIN and evaluates(spec, model_version):
        return RoundKind.EVALUATE
    if kind is not RoundKind.SWAG and collects(spec, model_version, last=last):
        return RoundKind.SWAG
    return None if last else RoundKind.TRAIN
