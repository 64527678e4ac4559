"""Refused calls, on their way into the audit log: many alike are one entry, so that they cannot fill the disk."""

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from fedround_server.coordinator.context import Context
from fedround_server.domain.audit import AuditRecord, acting
from fedround_server.domain.errors import FedroundError, Unavailable

log = logging.getLogger(__name__)
INTERVAL = timedelta(seconds=2)
QUIET = timedelta(minutes=1)
MAX_KNOWN = 1000
MAX_STRANGERS = 50
"""How many sorts of refusals are told apart within QUIET; callers without a user may be anybody, so they get fewer."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OTHERS = "others"

Key: TypeAlias = tuple[str, str, str, str]


@dataclass
class _Sort:
    """RejectedUpdates that are alike.

    Attributes:
        since: When the first of those was refused that are not written.
        count: How many are not written.
        due: When they are.
        method: What the first of them called.
        ids: What that was about.
    """

    since: datetime
    due: datetime
    method: str
    ids: Mapping[str, str]
    count: int = 0


class DeniedCalls:
    """Counts refusals by caller, method and reason, and writes them off the path of the calls.

    The first of a sort is written within seconds, and what follows within QUIET as one entry with a count.
    """

    def __init__(self, context: Context) -> None:
        """Begins with none."""
        self._context = context
        self._known: dict[Key, _Sort] = {}
        self._strangers: dict[Key, _Sort] = {}
        self._writing = asyncio.Lock()

    def note(self, method: str, peer: str, error: FedroundError) -> None:
        """Counts a refusal.

        Args:
            method: Full name of the method that was called.
            peer: Where the call came from, as gRPC tells.
            error: What it was answered with. Failures of the server itself are no refusals.
        """
        if isinstance(error, Unavailable):
            return
        now, user_id = self._context.clock.now(), acting.get()
        if user_id:
            sorts, limit, key = self._known, MAX_KNOWN, (user_id, "", method, error.reason)
        else:
            # Without the port: each connection has another one. Without the method: to be nobody suffices to call all.
            sorts, limit, key = self._strangers, MAX_STRANGERS, ("", peer.rpartition(":")[0][:64], "", error.reason)
        ids = _ids(error)
        if key not in sorts and len(sorts) >= limit:
            key, method, ids = ("", "", "", OTHERS), "", {}
        found = sorts.setdefault(key, _Sort(now, now, method, ids))
        if not found.count:
            found.since, found.method, found.ids = now, method, ids
        found.count += 1

    async def run(self) -> None:
        """Writes what is due, again and again."""
        while True:
            await self._context.clock.sleep(INTERVAL)
            await self.flush()

    async def flush(self, *, everything: bool = False) -> None:
        """Writes what is due, or everything, in one transaction; what cannot be written now stays."""
        async with self._writing:
            await self._flush(everything=everything)

    async def _flush(self, *, everything: bool) -> None:
        now, notes = self._context.clock.now(), []
        written: list[tuple[_Sort, int]] = []
        for sorts in (self._known, self._strangers):
            for key, found in list(sorts.items()):
                if found.due > now and not everything:
                    continue
                if not found.count:
                    # It was quiet for long enough.
                    del sorts[key]
                    continue
                notes.append(_note(key, found))
                written.append((found, found.count))
        if not notes:
            return
        try:
            await self._context.store.audit.add(notes)
        except Unavailable as error:
            log.warning("noting refusals: %s", error)
            return
        for found, count in written:
            # More may have come meanwhile.
            found.count -= count
            found.since = found.due = now
            found.due += QUIET


def _note(key: Key, found: _Sort) -> AuditRecord:
    user_id, peer, _, reason = key
    facts = {"method": found.method, "peer": peer, "reason": reason, "count": found.count, "ids": dict(found.ids)}
    return AuditRecord("call_refused", subject=user_id, facts={**facts, "since": found.since.isoformat()})


def _ids(error: FedroundError) -> Mapping[str, str]:
    """Returns the ids in an error's metadata: nothing else there is bounded, and a token is no UUID."""
    return {name: value for name, value in error.metadata.items() if UUID.fullmatch(value)}
