"""The passage of time, as the client sees it: injected, so that tests need not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Alarm(Protocol):
    """A call that is due later."""

    def cancel(self) -> object:
        """Calls it off, if it is not too late."""


class Clock(Protocol):
    """What tells the time, in seconds; `grpc_testing.strict_fake_time` is one, too."""

    def time(self) -> float:
        """Seconds since some moment; never goes back."""

    def sleep_for(self, duration: float) -> None:
        """Returns after so many seconds."""

    def call_in(self, behavior: Callable[[], object], delay: float) -> Alarm:
        """Calls the function after so many seconds, in a thread of its own."""


class SystemClock:
    """The real time."""

    def time(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def sleep_for(self, duration: float) -> None:
        """Sleeps for so many seconds."""
        time.sleep(duration)

    def call_in(self, behavior: Callable[[], object], delay: float) -> Alarm:
        """Calls the function after so many seconds, in a daemon thread."""
        timer = threading.Timer(delay, behavior)
        timer.daemon = True
        timer.start()
        return timer
