"""Pace steering: when devices that check in are to come back, so that their calls are spread over time.

A device that has checked in waits for a time that is drawn at random from a window, and the window is as long as it
takes all devices to call at the rate that the server allows. So devices that called at the same moment do not call at
the same moment again. Bonawitz et al., Towards Federated Learning at Scale: System Design (MLSys 2019), section 2.3.
"""

import math
from datetime import timedelta

TARGET = 0.8
"""The part of the allowed rate that is aimed at. Right after many new devices have called at once, it is 0.88."""
SHORTEST, LONGEST = 0.5, 1.5
"""The window in which the waiting time lies, in parts of its mean."""
IDLE = 6
"""How many times longer devices wait for which there is no training."""
LATE = 1.25
"""How many times later than it was told to a device may come back before it counts as gone; and LATE_SECONDS more."""
LATE_SECONDS = 3.0
MAX_CLAIM = timedelta(days=1)
"""The longest waiting time that a device is believed to have been told."""


def mean_wait(devices: float, calls_per_second: float, shortest: timedelta, *, is_idle: bool) -> timedelta:
    """Returns how long devices wait on average between two calls.

    Args:
        devices: How many devices there are.
        calls_per_second: How many calls of all devices are allowed.
        shortest: The least that devices wait on average.
        is_idle: Whether there is no training for the device.
    """
    needed = timedelta(seconds=devices / (TARGET * calls_per_second))
    return max(shortest * (IDLE if is_idle else 1), needed)


def wait(mean: timedelta, draw: float) -> timedelta:
    """Returns how long a device waits.

    Args:
        mean: How long devices wait on average.
        draw: A random number from 0 to 1, uniformly distributed.
    """
    return mean * (SHORTEST + (LONGEST - SHORTEST) * draw)


def latest_return(told: timedelta) -> timedelta:
    """Returns after how long a device that was told to wait counts as gone."""
    return told * LATE + timedelta(seconds=LATE_SECONDS)


class ReturningDevices:
    """An estimate of how many devices there are whom this server has not told when to come back.

    An earlier process has, before a restart, or another replica. If N devices wait w seconds on average, they make
    N / w calls per second, and each stands for w seconds that its device has waited: the sum over the calls of a second
    is N. So the estimate is right from the first seconds on, when the server itself has seen nearly none of them.
    """

    MEMORY = 30.0
    """After how many seconds a call counts 1/e."""

    def __init__(self, start: float) -> None:
        """Begins to count.

        Args:
            start: The time in seconds, by a clock that is never set.
        """
        self._start = self._last = start
        self._sum = 0.0

    def add(self, waited: timedelta, now: float) -> None:
        """Records a call of a device that was told elsewhere to wait for so long."""
        self._decay(now)
        self._sum += min(waited, MAX_CLAIM).total_seconds()

    def estimate(self, now: float) -> float:
        """Returns how many devices there are."""
        self._decay(now)
        # In its first seconds it has heard of a part of what it would remember; in the first one, of too little.
        age = max(1.0, now - self._start)
        return self._sum / (self.MEMORY * -math.expm1(-age / self.MEMORY))

    def _decay(self, now: float) -> None:
        self._sum *= math.exp((self._last - now) / self.MEMORY)
        self._last = now
