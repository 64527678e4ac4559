"""Forecasts when updates arrive and a round ends, from the durations of earlier rounds."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from statistics import median

HISTORY = 20
"""How many earlier rounds of the same kind are taken into account."""


def arrival(ask_time: datetime, durations: Sequence[timedelta], now: datetime) -> datetime | None:
    """Forecasts when a missing update arrives: after the member's median duration, or now if that has passed.

    The durations are the times from being asked to an accepted update, in earlier rounds; without any, returns None.
    """
    if not durations:
        return None
    return max(now, ask_time + timedelta(seconds=median(duration.total_seconds() for duration in durations)))


def end(arrivals: Iterable[datetime | None], expected: int, deadline: datetime | None) -> datetime | None:
    """Forecasts when a round has enough updates, or reaches its deadline; None if too few arrivals are known.

    Args:
        arrivals: When each member's update arrived, or its forecast; None if unknown.
        expected: How many updates close the round, at least 1.
        deadline: When the round ends at the latest; None for no deadline.
    """
    known = sorted(time for time in arrivals if time is not None)
    if len(known) < expected:
        return None
    return known[expected - 1] if deadline is None else min(known[expected - 1], deadline)
