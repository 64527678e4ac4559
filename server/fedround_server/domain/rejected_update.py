"""Updates and reports that were kept out of a round, or lost."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

UPDATE_LOST = "UPDATE_LOST"
"""The reason of an update that was accepted, and whose file was damaged on the disk before it was counted."""
MAX_MESSAGE = 300
"""How many characters of an error message are stored."""


@dataclass(frozen=True, slots=True)
class RejectedUpdate:
    """How often a participant's updates to a round were rejected for a reason, with the last one's time and message."""

    reason: str
    count: int
    last_time: datetime
    message: str


def sum_by_reason(rejected: Iterable[RejectedUpdate]) -> tuple[RejectedUpdate, ...]:
    """Sums counts by reason, with the message of the latest one, in the order of the reasons."""
    found: dict[str, RejectedUpdate] = {}
    for one in rejected:
        before = found.get(one.reason, one)
        latest = max(before, one, key=lambda candidate: candidate.last_time)
        count = one.count + (0 if before is one else before.count)
        found[one.reason] = RejectedUpdate(one.reason, count, latest.last_time, latest.message)
    return tuple(found[reason] for reason in sorted(found))
