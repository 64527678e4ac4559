"""A replica that is killed again and again, and started again each time."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from signal import SIGCONT, SIGKILL, SIGSTOP

from chaos.server_process import RestartableServer, ServerProcess

AT_POINTS = 0.6
"""How often a replica is started to be killed at a point of the commit protocol."""
MAX_UPTIME = 4.0
# A point that is not reached by then is given up, and the replica is killed anyway.
POINT_SECONDS = 5.0
SHUTDOWN_SECONDS = 5.0
MAX_DOWNTIME = 1.0
AT_SHUTDOWN = ("audit.record_heads.", "user.record_last_seen.", "replica.give_up.", "replica.given_up")
"""The points that a replica reaches when it is stopped."""


class Replica:
    """One replica, which is killed and started when that is due and `tend` is called.

    Attributes:
        server: Starts its processes.
        point: The point that it is to be killed at; empty for none.
        failures: What it did that it should not have done.
        failed_starts: How often it did not start since PostgreSQL or the object store was away.
    """

    def __init__(
        self,
        server: RestartableServer,
        points: Sequence[str],
        draw: random.Random,
        kills: Counter[str],
        lose: Callable[[str, str, float], None],
    ) -> None:
        """Starts nothing yet.

        Args:
            server: Starts its processes.
            points: The points that it is killed at.
            draw: Draws what happens.
            kills: Counts the kills by where they were.
            lose: Is told of each address that does not answer any more, why, and since when.
        """
        self.server = server
        self.failures: list[str] = []
        self.failed_starts = 0
        self._points = points
        self._draw = draw
        self._kills = kills
        self._lose = lose
        self._process: ServerProcess | None = None
        self.point = ""
        self._is_stopping = False
        self._begun = self._start_at = self._kill_at = 0.0
        self._resume_at: float | None = None
        self._excused_until = 0.0
        self._what = "kill"

    @property
    def is_serving(self) -> bool:
        process = self._process
        return process is not None and process.serving is not None and self._resume_at is None

    def excuse(self) -> None:
        """Says that what it needs to start is away, or has just been."""
        self._excused_until = time.monotonic()

    def start(self) -> None:
        """Starts it without a failpoint, and waits until it serves."""
        self._begin("")
        assert self._process is not None
        assert self._process.wait_serving(), self.server.log.read_text()

    def tend(self) -> None:
        """Does what is due: starts it, has it go on, or kills it."""
        now = time.monotonic()
        if self._resume_at is not None:
            if now >= self._resume_at:
                self.resume()
        elif self._process is None:
            if now >= self._start_at:
                self._begin(self._draw.choice(self._points) if self._draw.random() < AT_POINTS else "")
        elif self._process.wait_ended(0):
            self._reap(self.point)
        elif now >= self._kill_at:
            self._end()

    def pause(self, seconds: float, what: str) -> None:
        """Pauses it and its worker for so long."""
        assert self._process is not None
        self._lose(self.server.address, what, time.monotonic())
        self._process.send(SIGSTOP)
        self._resume_at = time.monotonic() + seconds

    def resume(self) -> None:
        """Has it go on, if it is paused."""
        if self._resume_at is None:
            return
        assert self._process is not None
        self._process.send(SIGCONT)
        self._resume_at = None
        self._kill_at = time.monotonic() + self._draw.uniform(1, MAX_UPTIME)

    def kill_workers(self) -> int:
        """Kills the processes that it has started; returns how many."""
        assert self._process is not None
        workers = self._process.others()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, SIGKILL)
        return len(workers)

    def settle(self) -> None:
        """Has it run without a failpoint, and serve."""
        self.resume()
        # Not one where another replica is sure to serve.
        self._what = "kill, to settle"
        while True:
            if self._process is not None:
                self._process.kill()
                self._reap("at random")
            self._begin("")
            assert self._process is not None
            if self._process.wait_serving():
                return
            self._reap("")
            assert not self.failures, self.server.log.read_text()

    def stop(self) -> None:
        """Stops it gracefully."""
        assert self._process is not None
        self._process.stop()
        if self._process.code != 0:
            self.failures.append(f"a replica ended with {self._process.code} when it was stopped")
        self._process = None

    def _begin(self, point: str) -> None:
        self.point, self._is_stopping = point, False
        times = 1 if point.startswith(("start.", "replica.", *AT_SHUTDOWN)) else self._draw.choice([1, 1, 1, 2, 3])
        self._begun = time.monotonic()
        self._process = self.server.start(f"{point}:{times}" if point else "")
        seconds = POINT_SECONDS if point and not point.startswith(AT_SHUTDOWN) else self._draw.uniform(0, MAX_UPTIME)
        self._kill_at = self._begun + seconds

    def _end(self) -> None:
        """Kills it, or has it reach a point on its way to its end."""
        assert self._process is not None
        if self.point.startswith(AT_SHUTDOWN) and not self._is_stopping:
            if self._process.serving is not None:
                self._is_stopping = True
                self._process.terminate()
            self._kill_at = time.monotonic() + SHUTDOWN_SECONDS
            return
        self._lose(self.server.address, self._what, time.monotonic())
        self._process.kill()
        self._reap(f"at random, waiting for {self.point}" if self.point else "at random")

    def _reap(self, where: str) -> None:
        """Counts the end of a process, and draws when the next one starts."""
        process, self._process = self._process, None
        assert process is not None
        assert process.ended is not None
        if process.code == -SIGKILL:
            self._lose(self.server.address, self._what, process.ended)
            self._kills[where or "at random"] += 1
        elif process.code != 0 or not self._is_stopping:
            # It cannot start without what was killed, too.
            if process.serving is None and self._begun <= self._excused_until + POINT_SECONDS:
                self.failed_starts += 1
            else:
                self.failures.append(f"{self.server.address} ended with {process.code}, waiting for {self.point!r}")
        self._start_at = time.monotonic() + self._draw.uniform(0, MAX_DOWNTIME)
