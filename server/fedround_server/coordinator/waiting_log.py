"""Log lines about rounds that wait: for whom, after a minute, and then after ever longer times."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import NotFound
from fedround_server.domain.rounds.round import MemberOrder, MemberPage, RoundState, UnfinishedRound

log = structlog.get_logger("fedround.training")
FIRST = timedelta(minutes=1)
"""After what time a round is logged first; the next line comes after twice the time."""
MAX_NAMED = 5
# Of those with nothing yet.
MISSING = MemberPage(limit=MAX_NAMED, after=(MemberOrder.MISSING, ""))


@dataclass(slots=True)
class _Wait:
    """What a training waits for: the number of its round, the state and the attempt; since when, and until a line."""

    key: tuple[int, RoundState, int]
    since: datetime
    due: timedelta


class WaitingLog:
    """The rounds that wait, since this process saw them first."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waits: dict[str, _Wait] = {}

    async def look(self, unfinished: Iterable[UnfinishedRound]) -> None:
        """Logs those of all unfinished rounds that are due.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        now = self._context.clock.now()
        waits: dict[str, _Wait] = {}
        for one in unfinished:
            key = one.number, one.state, one.attempt
            wait = self._waits.get(one.training_id)
            waits[one.training_id] = wait if wait is not None and wait.key == key else _Wait(key, now, FIRST)
        self._waits = waits
        for training_id, wait in list(waits.items()):
            if now - wait.since >= wait.due:
                wait.due = 2 * (now - wait.since)
                await self._log(training_id, wait.key[0], now - wait.since)

    async def _log(self, training_id: str, number: int, waited: timedelta) -> None:
        try:
            actor_id = await self._context.store.viewers.actor_of(training_id)
            view = await self._context.store.rounds.explain(training_id, number, actor_id, MISSING)
        except NotFound:
            # It was removed meanwhile.
            return
        found, rule = view.round, view.wait_rule
        if rule is None:
            return
        now, presence = self._context.clock.now(), self._context.presence
        values: dict[str, object] = {
            "training_id": training_id,
            "round": number,
            "kind": found.kind.public_name,
            "waits_for": rule.value,
            "seconds": round(waited.total_seconds()),
            "connected": sum(presence.is_listening(one, now) for one in view.participant_ids),
            "registered": len(view.participant_ids),
        }
        if found.state is RoundState.PENDING:
            values["wanted"] = view.wanted
        elif found.state is RoundState.OPEN:
            # Users choose their names: the formatters of the log escape them, in a list too.
            missing = [one.name for one in view.members if one.arrive_time is None][:MAX_NAMED]
            values |= {
                "arrived": found.arrived,
                "expected": found.expected,
                "failed": found.failed,
                "members": found.members,
                "missing": missing,
            }
            if found.deadline is not None:
                values["deadline"] = found.deadline.isoformat(timespec="milliseconds")
        if view.lack is not None:
            values["lack"] = view.lack
        log.info("round_waits", **values)
