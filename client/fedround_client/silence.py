"""Ends calls to a server that is there, but does not go on with the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedround_client.clock import Alarm, Clock

SILENCE_TIMEOUT = 60.0
"""Seconds without a sign of life after which a call is considered dead."""


class Silence:
    """Measures how long a call waits for the server, and cancels it after too long.

    The time between `answered` and the next `waiting` is the caller's own, and does not count. An alarm takes a thread,
    so it is not renewed with every message, but when a quarter of its time has passed: a call is cancelled after three
    quarters of the limit at least.

    Attributes:
        seconds: The limit.
        expired: Whether a call was cancelled.
    """

    def __init__(self, clock: Clock, seconds: float = SILENCE_TIMEOUT) -> None:
        """Sets the limit.

        Args:
            clock: The clock.
            seconds: The limit.
        """
        self.seconds = seconds
        self.expired = False
        self._clock = clock
        self._is_waiting = False
        self._alarm: Alarm | None = None
        self._renew_at = 0.0
        self._cancel: Callable[[], object] = lambda: None

    @contextmanager
    def limited(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Limits the silence of the call in the block.

        Args:
            cancel: Cancels the call; called in another thread.
        """
        self._cancel = cancel
        self._set_alarm()
        try:
            yield
        finally:
            self._is_waiting = False
            if self._alarm is not None:
                self._alarm.cancel()

    def waiting(self) -> None:
        """Begins to wait for the server."""
        self._is_waiting = True
        if self._alarm is not None and self._clock.time() >= self._renew_at:
            self._alarm.cancel()
            self._set_alarm()

    def answered(self) -> None:
        """Ends the wait: the server has sent something, or taken what was sent."""
        self._is_waiting = False

    def _set_alarm(self) -> None:
        self._renew_at = self._clock.time() + self.seconds / 4
        self._alarm = self._clock.call_in(self._end, self.seconds)

    def _end(self) -> None:
        if self._is_waiting:
            self.expired = True
            self._cancel()
