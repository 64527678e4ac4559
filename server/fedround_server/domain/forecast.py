"""When the members of a round will have submitted, and the round will end, from what they took before."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from statistics import median

HISTORY = 20
"""How many rounds of the same kind are looked back at."""


def arrival(ask_time: datetime, durations: Sequence[timedelta], now: datetime) -> datetime | None:
    """Predicts when a missing member's update arrives: after its median time, or, if that is over, at any moment.

    Args:
        ask_time: When the member was asked.
        durations: How long it took from being asked to an accepted update, in earlier rounds.
        now: The present.

    Returns:
        None for a member without a history.
    """
    if not durations:
        return None
    return max(now, ask_time + timedelta(seconds=median(duration.total_seconds() for duration in durations)))


def end(arrivals: Iterable[datetime | None], expected: int, deadline: datetime | None) -> datetime | None:
    """Predicts when a round has what it needs, or its deadline.

    Args:
        arrivals: When each member's update arrived, or is predicted to; None for an unknown time.
        expected: How many updates close the round; from 1.
        deadline: When the round ends at the latest; None means without end.

    Returns:
        None if too few arrivals are known.
    """
    known = sorted(time for time in arrivals if time is not None)
    if len(known) < expected:
        return None
    return known[expected - 1] if deadline is None else min(known[expected - 1], deadline)
