"""The clock of the client: injected, so that tests need not wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from fedround_client.alarms import Alarms

_ALARMS = Alarms()


class Alarm(Protocol):
    """A scheduled call."""

    def cancel(self) -> object:
        """Cancels the call, unless it has begun."""


class Clock(Protocol):
    """A clock in seconds; `grpc_testing.strict_fake_time` is an implementation, too."""

    def time(self) -> float:
        """Returns the seconds since a fixed moment; never goes back."""

    def sleep_for(self, duration: float) -> None:
        """Sleeps for a number of seconds."""

    def call_in(self, behavior: Callable[[], object], delay: float) -> Alarm:
        """Schedules a call of the function after a number of seconds, in a thread of its own."""


class SystemClock:
    """The real time."""

    def time(self) -> float:
        """Returns the seconds of the monotonic clock."""
        return time.monotonic()

    def sleep_for(self, duration: float) -> None:
        """Sleeps for a number of seconds."""
        time.sleep(duration)

    def call_in(self, behavior: Callable[[], object], delay: float) -> Alarm:
        """Schedules a call of the function after a number of seconds, in a daemon thread."""
        return _ALARMS.call_at(time.monotonic() + delay, behavior)
