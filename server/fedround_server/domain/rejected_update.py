"""RejectedUpdates: what was submitted in a round and kept out of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

MAX_MESSAGE = 300
"""How much is kept of what was said, in characters."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How often something was refused for a reason.

    Attributes:
        reason: UPPER_SNAKE, as the participant was told.
        last_time: When it was refused last.
        message: What was said then.
    """

    reason: str
    count: int
    last_time: datetime
    message: str


def summed(refusals: Iterable[Refusal]) -> tuple[Refusal, ...]:
    """Adds up refusals by reason, the latest message standing for all."""
    found: dict[str, Refusal] = {}
    for refusal in refusals:
        before = found.get(refusal.reason, refusal)
        latest = max(before, refusal, key=lambda one: one.last_time)
        count = refusal.count + (0 if before is refusal else before.count)
        found[refusal.reason] = Refusal(refusal.reason, count, latest.last_time, latest.message)
    return tuple(found[reason] for reason in sorted(found))
