"""Counts what the server does, from its start on. One object for all parts, changed in the event loop only.

A counter is a plain number: counting takes no lock and no allocation. No key comes from a caller: what labels a counter
is the name of a method, a status code, a reason, or the kind of a job, of which there are few.
"""

import asyncio
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

ROUND_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)
"""Upper bounds of the buckets of rounds, in seconds: a round takes between milliseconds and days."""
FAILURES = frozenset(
    {
        *("ABSENT", "TRAIN_FAILED", "EVALUATE_FAILED", "SWAG_FAILED", "UNSUPPORTED_ROUND", "BASE_MISSING"),
        *("TENSORS_MISMATCH", "UPDATE_MISMATCH", "UPDATE_NORM", "UPDATE_NOT_FINITE", "UPDATE_STALE", "NUM_EXAMPLES"),
    }
)
"""The reasons of failures that are counted by themselves: the server's and the SDK's. Participants may report any."""
OTHER = "OTHER"
"""Stands for all other reasons."""


@dataclass(slots=True)
class Durations:
    """How many times something has happened, and how long it took, in seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one that took so many seconds."""
        self.count += 1
        self.seconds += seconds


class Histogram(Durations):
    """Durations by size.

    Attributes:
        buckets: How many were at most as long as each bound, and longer than the one before; the last one has no bound.
    """

    def __init__(self, bounds: tuple[float, ...] = ROUND_SECONDS) -> None:
        super().__init__()
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)

    def add(self, seconds: float) -> None:
        """Counts one that took so many seconds."""
        self.count += 1
        self.seconds += seconds
        self.buckets[bisect_left(self.bounds, seconds)] += 1

    def cumulative(self) -> list[tuple[float, int]]:
        """Returns how many were at most as long as each bound, of which the last is infinite."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.buckets, strict=True):
            total += count
            found.append((bound, total))
        return found


class JobQueue:
    """The jobs of one process, which runs them one after the other.

    Attributes:
        in_progress: Jobs that run or wait.
        crashes: How often the process has ended unexpectedly.
        jobs: The jobs that have ended, by kind, with the time that they ran.
        waits: How long jobs have waited for those before them, in seconds, by kind.
    """

    def __init__(self) -> None:
        self.in_progress = 0
        self.crashes = 0
        self.jobs: defaultdict[str, Durations] = defaultdict(Durations)
        self.waits: defaultdict[str, float] = defaultdict(float)
        self._free_since = 0.0

    @property
    def running(self) -> int:
        """The number of jobs that run: one at most."""
        return min(self.in_progress, 1)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for those before them."""
        return self.in_progress - self.running

    @contextmanager
    def job(self, kind: str) -> Iterator[None]:
        """Counts a job, which is given to the process at the beginning of the block, and has ended at its end.

        One whose caller is cancelled is not counted: it may not have begun.
        """
        given = time.monotonic()
        self.in_progress += 1
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._end(kind, given)
            raise
        else:
            self._end(kind, given)
        finally:
            self.in_progress -= 1

    def _end(self, kind: str, given: float) -> None:
        ended = time.monotonic()
        begun = max(given, self._free_since)
        self._free_since = ended
        self.jobs[kind].add(ended - begun)
        self.waits[kind] += begun - given


def _no_connections() -> Mapping[str, int]:
    return {}


@dataclass
class Counters:
    """All counters of a server, and numbers that change too often to be asked for.

    Attributes:
        start_time: When the server was started.
        calls: Calls that have ended, by method, as in "fedround.v1.RoundService/SubmitUpdate", and status code.
        call_seconds: How long they took, by method.
        received_bytes: Bytes of chunks received, as they were sent.
        sent_bytes: Bytes of chunks sent, and of models sent with the starts of rounds.
        calls_in_progress: Calls in progress, subscriptions included.
        in_progress: Calls in progress by user, for each limit that counts them.
        connections: Returns the open connections by state.
        updates_accepted: Updates accepted.
        reports_accepted: Reports of evaluation rounds accepted.
        updates_rejected: Updates and reports rejected, by reason.
        failures: Failures of participants, by reason.
        collecting: How long rounds were open.
        aggregating: How long it took from their close to the commit of their result.
        queues: The queues of jobs, by the name of the process.
        commits: Transactions that were committed, from their beginning to the end of their commit.
    """

    start_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    call_seconds: defaultdict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    received_bytes: int = 0
    sent_bytes: int = 0
    calls_in_progress: int = 0
    in_progress: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    connections: Callable[[], Mapping[str, int]] = _no_connections
    updates_accepted: int = 0
    reports_accepted: int = 0
    updates_rejected: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    collecting: Histogram = field(default_factory=Histogram)
    aggregating: Histogram = field(default_factory=Histogram)
    queues: defaultdict[str, JobQueue] = field(default_factory=lambda: defaultdict(JobQueue))
    commits: Durations = field(default_factory=Durations)

    def add_call(self, method: str, code: str, seconds: float) -> None:
        """Counts a call that has ended; the method is one that is served."""
        name = method[1:]
        self.calls[name, code] += 1
        self.call_seconds[name].add(seconds)

    def add_failures(self, reason: str, count: int = 1) -> None:
        """Counts failures of participants."""
        self.failures[reason if reason in FAILURES else OTHER] += count

    def add_round(self, collecting: timedelta, aggregating: timedelta) -> None:
        """Counts a round whose result was committed."""
        self.collecting.add(max(0.0, collecting.total_seconds()))
        self.aggregating.add(max(0.0, aggregating.total_seconds()))
