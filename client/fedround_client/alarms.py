"""Alarms of many calls in one thread: a thread for each costs more than a call that needs none."""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable

_KEPT = 64
"""How many cancelled alarms are kept at least before all of them are removed at once."""
_RETRY_SECONDS = 1.0
"""After how long an alarm is tried again for which no thread could be started."""


class Alarm:
    """A call that is scheduled.

    Attributes:
        due: When it begins, in seconds of the monotonic clock.
    """

    def __init__(self, due: float, behavior: Callable[[], object]) -> None:
        """Schedules nothing: `Alarms.call_at` does."""
        self.due = due
        self._behavior: Callable[[], object] | None = behavior

    def __lt__(self, other: Alarm) -> bool:
        """Returns whether it is due earlier."""
        return self.due < other.due

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled, or has begun."""
        return self._behavior is None

    def cancel(self) -> None:
        """Cancels the call, unless it has begun. What the function refers to is released."""
        self._behavior = None

    def begin(self) -> None:
        """Begins the call in a daemon thread of its own, unless it is cancelled.

        Raises:
            RuntimeError: No thread can be started now; the alarm stays as it is.
        """
        behavior = self._behavior
        if behavior is not None:
            threading.Thread(target=behavior, name="alarm", daemon=True).start()
            self._behavior = None


class Alarms:
    """Begins calls when they are due, from one daemon thread that the first alarm starts.

    A call waits for its alarm much longer than it lasts, so nearly all alarms are cancelled. Setting one wakes the
    thread only if it is due before all others, and cancelling one never does.
    """

    def __init__(self) -> None:
        """Starts no thread yet."""
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Begins without alarms. In the child of a fork neither the thread nor the calls of the parent go on."""
        self._changed = threading.Condition(threading.Lock())
        self._pending: list[Alarm] = []
        self._limit = _KEPT
        self._wakes_at = float("inf")
        self._thread: threading.Thread | None = None

    def call_at(self, due: float, behavior: Callable[[], object]) -> Alarm:
        """Schedules a call of the function for a time of the monotonic clock."""
        alarm = Alarm(due, behavior)
        with self._changed:
            if len(self._pending) >= self._limit:
                self._pending = [one for one in self._pending if not one.is_cancelled]
                heapq.heapify(self._pending)
                self._limit = max(_KEPT, 2 * len(self._pending))
            heapq.heappush(self._pending, alarm)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="alarms", daemon=True)
                thread.start()
                self._thread = thread
            elif due < self._wakes_at:
                self._changed.notify()
        return alarm

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                while self._pending and (self._pending[0].is_cancelled or self._pending[0].due <= now):
                    self._begin(heapq.heappop(self._pending), now)
                self._wakes_at = self._pending[0].due if self._pending else float("inf")
                self._changed.wait(min(self._wakes_at - now, threading.TIMEOUT_MAX))

    def _begin(self, alarm: Alarm, now: float) -> None:
        try:
            alarm.begin()
        except RuntimeError:
            alarm.due = now + _RETRY_SECONDS
            heapq.heappush(self._pending, alarm)
