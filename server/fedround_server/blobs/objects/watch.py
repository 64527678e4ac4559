"""Notices requests to an object store that have no answer for long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLOWEST = 2 << 20
"""How many bytes a second must be transferred for a request not to count as one without an answer."""
POLL_SECONDS = 0.5
IDLE_POLLS = 120
"""After how many polls without a request the thread ends; another one is started for the next request."""


class Watch:
    """Watches requests, with a thread as long as there are some."""

    def __init__(self, on_late: Callable[[float], None], seconds: float, clock: Callable[[], float]) -> None:
        """Watches nothing yet.

        Args:
            on_late: Is called, again and again, while a request is late, with since when there was no answer.
            seconds: After how many seconds a request is late if no other one was answered meanwhile, in addition to
                the time that the bytes of all pending requests may take.
            clock: Returns a time in seconds.
        """
        self._on_late = on_late
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        # When each request was begun, and how many bytes it has.
        self._pending: dict[object, tuple[float, int]] = {}
        self._answered = clock()
        self._is_running = False

    @contextmanager
    def request(self, size_bytes: int) -> Iterator[None]:
        """Watches a request of so many bytes, which is the block."""
        key = object()
        with self._lock:
            if not self._is_running:
                threading.Thread(target=self._run, name="watch object store", daemon=True).start()
                self._is_running = True
            self._pending[key] = (self._clock(), size_bytes)
        try:
            yield
        finally:
            with self._lock:
                del self._pending[key]

    def answered(self) -> None:
        """Notes that a request was answered."""
        self._answered = self._clock()

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(POLL_SECONDS)
            with self._lock:
                idle = 0 if self._pending else idle + 1
                if idle > IDLE_POLLS:
                    self._is_running = False
                    return
                self._look()

    def _look(self) -> None:
        now = self._clock()
        # They share the network.
        limit = self._seconds + sum(size for _, size in self._pending.values()) / SLOWEST
        for begun, _ in self._pending.values():
            since = max(begun, self._answered)
            if now - since >= limit:
                # With the lock, so that the answer to this request is noted afterwards.
                self._on_late(since)
                return
