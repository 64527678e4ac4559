"""What happened on a server between two statuses, for `fedround top`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from fedround.v1.server_pb2 import ServerStatus

NO_FAILURES = ("OK", "CANCELLED")
"""Status codes of calls that have not failed: a subscription usually ends by being cancelled."""
WINDOW = timedelta(minutes=5)
"""Over which time the free space of the disk is observed."""
SHORTEST_WINDOW = timedelta(seconds=20)
"""From how much on it says something about the future."""


@dataclass(frozen=True)
class Rates:
    """What happened per second.

    Attributes:
        seconds: How long the time in question was.
        calls: Calls that ended.
        failed_calls: Those of them with another code than OK and CANCELLED.
        methods: The calls by method.
        received_bytes: Bytes of chunks received.
        sent_bytes: Bytes of chunks sent.
        updates: Updates and reports accepted.
        rejected: Updates and reports rejected, by reason.
        failures: Failures of participants.
        rounds: Rounds whose result was committed.
        jobs: Jobs of worker processes that ended.
        commits: Transactions.
        commit_seconds: Mean duration of one; 0 if there was none.
        cpu: CPU time of the server's process: 1 for one core.
    """

    seconds: float
    calls: float
    failed_calls: float
    methods: Mapping[str, float]
    received_bytes: float
    sent_bytes: float
    updates: float
    rejected: Mapping[str, float]
    failures: float
    rounds: float
    jobs: float
    commits: float
    commit_seconds: float
    cpu: float


def rates_between(before: ServerStatus, now: ServerStatus) -> Rates:
    """Returns what happened between two statuses; since the start, if the server was started in between."""
    if before.start_time != now.start_time:
        before = ServerStatus(start_time=now.start_time, current_time=now.start_time)
    nanoseconds = now.current_time.ToNanoseconds() - before.current_time.ToNanoseconds()
    # The clock of the server may have been set.
    seconds = max(nanoseconds / 1e9, 1e-3)

    def rate(later: float, earlier: float) -> float:
        return max(0.0, later - earlier) / seconds

    calls, calls_before = _by_method(now), _by_method(before)
    failed, failed_before = (_by_method(one, failed=True).total() for one in (now, before))
    commits = now.database.commits - before.database.commits
    commit_seconds = now.database.commit_seconds - before.database.commit_seconds
    return Rates(
        seconds=seconds,
        calls=rate(calls.total(), calls_before.total()),
        failed_calls=rate(failed, failed_before),
        methods={name: rate(count, calls_before[name]) for name, count in calls.items() if count > calls_before[name]},
        received_bytes=rate(now.received_bytes, before.received_bytes),
        sent_bytes=rate(now.sent_bytes, before.sent_bytes),
        updates=rate(now.updates_accepted, before.updates_accepted),
        rejected={
            reason: rate(count, before.updates_rejected.get(reason, 0))
            for reason, count in sorted(now.updates_rejected.items())
            if count > before.updates_rejected.get(reason, 0)
        },
        failures=rate(now.participant_failures, before.participant_failures),
        rounds=rate(now.rounds_done, before.rounds_done),
        jobs=rate(now.worker.jobs_done, before.worker.jobs_done),
        commits=rate(commits, 0),
        commit_seconds=commit_seconds / commits if commits > 0 else 0.0,
        cpu=rate(now.cpu_seconds, before.cpu_seconds),
    )


class DiskTrend:
    """How fast the disk fills up."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, status: ServerStatus) -> None:
        """Observes the free space."""
        time = status.current_time.ToNanoseconds() / 1e9
        self._seen.append((time, status.disk.free_bytes))
        while time - self._seen[0][0] > WINDOW.total_seconds():
            self._seen.popleft()

    def until(self, free: int) -> timedelta | None:
        """Returns when so many bytes will be free if the disk goes on to fill up; None if it does not, or not soon."""
        if not self._seen:
            return None
        (begin, most), (end, now) = self._seen[0], self._seen[-1]
        if end - begin < SHORTEST_WINDOW.total_seconds() or now >= most or now <= free:
            return None
        seconds = (now - free) * (end - begin) / (most - now)
        return timedelta(seconds=seconds) if seconds < timedelta(days=30).total_seconds() else None


def _by_method(status: ServerStatus, *, failed: bool = False) -> Counter[str]:
    """Returns how many calls of each method have ended; with `failed`, those that failed."""
    counts: Counter[str] = Counter()
    for call in status.calls:
        if not failed or call.code not in NO_FAILURES:
            counts[call.method] += call.count
    return counts
