"""Ends calls to a server that is there, but does not go on with the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedround_client.clock import Alarm, Clock

SILENCE_TIMEOUT = 60.0
"""Seconds without a sign of life after which a call is considered dead."""


class Silence:
    """Measures how long a call waits for the server, and cancels it after too long.

    The time between `answered` and the next `waiting` is the caller's own, and does not count. There is one alarm for
    the whole call, not one for each message, since an alarm takes a thread.

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
        self._since: float | None = None
        self._alarm: Alarm | None = None

    @contextmanager
    def limited(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Limits the silence of the call in the block.

        Args:
            cancel: Cancels the call; called in another thread.
        """
        self.waiting()
        self._set_alarm(cancel, self.seconds)
        try:
            yield
        finally:
            alarm, self._alarm = self._alarm, None
            if alarm is not None:
                alarm.cancel()

    def waiting(self) -> None:
        """Begins to wait for the server."""
        self._since = self._clock.time()

    def answered(self) -> None:
        """Ends the wait: the server has sent something, or taken what was sent."""
        self._since = None

    def _set_alarm(self, cancel: Callable[[], object], seconds: float) -> None:
        self._alarm = self._clock.call_in(lambda: self._check(cancel), seconds)

    def _check(self, cancel: Callable[[], object]) -> None:
        since = self._since
        remaining = self.seconds if since is None else since + self.seconds - self._clock.time()
        if self._alarm is None:
            return
        if remaining > 0:
            self._set_alarm(cancel, remaining)
            return
        self.expired = True
        cancel()
