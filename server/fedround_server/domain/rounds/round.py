"""Rounds: one ask-and-collect cycle each, and the policy that closes them."""

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedround_server.domain.aggregation import UpdateFacts
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.failure import ParticipantFailure
from fedround_server.domain.policy import OnMissed, RoundPolicy, enough_updates
from fedround_server.domain.rejected_update import RejectedUpdate
from fedround_server.domain.rounds.kind import RoundKind


class RoundState(enum.Enum):
    """Where a round is in its life."""

    OPEN = "OPEN"
    AGGREGATING = "AGGREGATING"
    DONE = "DONE"
    ABANDONED = "ABANDONED"
    PENDING = "PENDING"

    @property
    def is_closed(self) -> bool:
        """Whether it accepts nothing any more."""
        return self not in (RoundState.PENDING, RoundState.OPEN)

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
        failed: How many present members have failed or are absent.
        members: How many members are present.
        needed: How many submissions the round needs; None for those of all members.
        eligible: How many participants could be chosen in the last draw of its cohort; None if there was none.
        chosen: How many were chosen in all draws.
        population: How many participants could have been asked when it was opened; 0 if it is not known.
        wait_end: Until when a round that has enough waits for others; None if it does not wait yet, or has no limit.
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
    failed: int = 0
    members: int = 0
    needed: int | None = None
    eligible: int | None = None
    chosen: int | None = None
    population: int = 0
    wait_end: datetime | None = None

    @property
    def releases(self) -> bool:
        """Whether members that are under way are told when the round is closed."""
        return self.chosen is not None and self.members > self.failed + self.arrived


@dataclass(frozen=True, slots=True)
class PendingRound:
    """A round that is not open yet, since it waits for connections.

    Attributes:
        wanted: How many participants must be connected.
        participant_ids: The registered participants.
    """

    wanted: int
    participant_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnfinishedRound:
    """A round that something is still to happen in: its opening, its close, or its aggregation.

    Attributes:
        keeper: The replica that aggregates it once it is closed; empty if it has left that to others, None on SQLite.
    """

    training_id: str
    number: int
    state: RoundState
    attempt: int
    deadline: datetime | None
    wait_end: datetime | None = None
    keeper: str | None = None


class MemberOrder(enum.IntEnum):
    """The groups of members in the order in which a round shows them."""

    FAILED = 0
    MISSING = 1
    ARRIVED = 2


@dataclass(frozen=True, slots=True)
class MemberPage:
    """A page of the members of a round: by group, and then by name.

    Attributes:
        limit: The maximum number of members.
        after: The group and the name behind which it begins; None for the first page.
        as_of: The time of the first page; None for the present. It decides about the groups, so that a member that
            submits or fails between two pages keeps its place, and is on one of them.
    """

    limit: int = 1000
    after: tuple[MemberOrder, str] | None = None
    as_of: datetime | None = None


FIRST_PAGE = MemberPage()


@dataclass(frozen=True, slots=True)
class MemberTimes:
    """When a member was asked and submitted; durations as those of `RoundMember`."""

    ask_time: datetime
    arrive_time: datetime | None
    durations: tuple[timedelta, ...]


@dataclass(frozen=True, slots=True)
class RoundMember:
    """A member of a round's cohort.

    Attributes:
        ask_time: Since when it is in the round.
        arrive_time: When its update or report was accepted; None while that is missing.
        seen_time: When it was seen last, as far as that is stored.
        durations: If its update of an open round is missing, what it took in earlier rounds of the kind, from being
            asked to an accepted update.
        rejected_updates: Its rejected submissions.
        failure: Why the round does not wait for it; None unless it failed or is absent.
        rounds_left_out: In how many rounds it was asked and did not fail, and its work did not count.
        report: What the aggregation has found out about its update; None unless it counted.
        order: Its group in pages of members.
    """

    user_id: str
    name: str
    ask_time: datetime
    arrive_time: datetime | None
    seen_time: datetime | None = None
    durations: tuple[timedelta, ...] = ()
    rejected_updates: tuple[RejectedUpdate, ...] = ()
    failure: ParticipantFailure | None = None
    rounds_left_out: int = 0
    report: UpdateFacts | None = None
    order: MemberOrder = MemberOrder.MISSING


@dataclass(frozen=True, slots=True)
class AwaitedMember:
    """A member whose submission a round waits for only while the member has a connection.

    Attributes:
        limit: How long it may be without a connection.
        since: The time before which that does not count; None if it had failed or was absent in the round before.
    """

    user_id: str
    limit: timedelta
    since: datetime | None


@dataclass(frozen=True, slots=True)
class RegisteredParticipant:
    """A participant of a training, whether or not it takes part in a round.

    Attributes:
        seen_time: When it was seen last, as far as that is stored.
    """

    user_id: str
    name: str
    seen_time: datetime | None


class WaitRule(enum.Enum):
    """What a round waits for."""

    ALL_UPDATES = "ALL_UPDATES"
    MIN_UPDATES = "MIN_UPDATES"
    AGGREGATION = "AGGREGATION"
    PARTICIPANTS = "PARTICIPANTS"
    AFTER_MIN = "AFTER_MIN"


@dataclass(frozen=True, slots=True)
class RoundView:
    """A round as its actor may see it: with its policy, its present members, and the rejected updates of all users.

    Attributes:
        members: A page of them, and the first one behind it; none in a summary.
        rejected_updates: Left out of summaries.
        times: Those of all members of an open round; left out of summaries and of pages other than the first.
        paused: Whether it is the current round of a training that is paused.
        stopped: Whether it is the current round of a training that its actor has stopped, or that stops after it.
        cohort: Who takes part in it; None for all participants.
        participant_ids: The registered participants, who need not be members.
        awaited: Of a pending round, these by name; left out like `times`.
        wanted: Of a pending round, how many participants must be connected before it opens.
        lack: What the updates that have arrived lack for the aggregation, or a pending round's participants.
    """

    round: Round
    policy: RoundPolicy
    members: tuple[RoundMember, ...] = ()
    rejected_updates: tuple[RejectedUpdate, ...] = ()
    times: tuple[MemberTimes, ...] = ()
    paused: bool = False
    stopped: bool = False
    cohort: Cohort | None = None
    participant_ids: tuple[str, ...] = ()
    awaited: tuple[RegisteredParticipant, ...] = ()
    wanted: int = 0
    lack: str | None = None

    @property
    def wait_rule(self) -> WaitRule | None:
        """What the round waits for; None if it is over."""
        if self.round.state is RoundState.PENDING:
            return WaitRule.PARTICIPANTS
        if self.round.state is RoundState.AGGREGATING:
            return WaitRule.AGGREGATION
        if self.round.state is not RoundState.OPEN:
            return None
        if self.round.arrived >= self.enough:
            return WaitRule.ALL_UPDATES if self.lack else WaitRule.AFTER_MIN
        able = self.round.members - (0 if self.policy.min_updates else self.round.failed)
        return WaitRule.MIN_UPDATES if self.enough < able else WaitRule.ALL_UPDATES

    @property
    def enough(self) -> int:
        """How many submissions are enough for a round that need not wait any longer."""
        return enough_updates(self.policy, self.round.members, self.round.failed, self.round.needed)

    @property
    def when_missed(self) -> OnMissed | None:
        """What happens if an open round reaches its deadline as it is; None if it has none, is not open, or closes."""
        if self.round.state is not RoundState.OPEN or self.round.deadline is None:
            return None
        if self.round.arrived >= self.enough > 0 and self.lack is None:
            return None
        return OnMissed.RETRY if self.round.attempt < self.policy.max_attempts else OnMissed.FAIL
