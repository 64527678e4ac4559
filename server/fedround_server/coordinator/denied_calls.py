"""Denied calls, on their way into the audit log: similar ones share an entry, so that they cannot fill the disk."""

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.outages import level_of
from fedround_server.domain.audit import AuditRecord, acting
from fedround_server.domain.errors import FedroundError, Unavailable

log = logging.getLogger(__name__)
FLUSH_INTERVAL = timedelta(seconds=2)
RETRY_INTERVAL = timedelta(seconds=30)
"""How long after a failure the next attempt is: each one logs that the database does not answer."""
GROUP_INTERVAL = timedelta(minutes=1)
"""How often a group of denied calls is written, after its first entry."""
MAX_AUTHENTICATED = 1000
"""How many groups of calls by users are kept apart."""
MAX_UNAUTHENTICATED = 50
"""How many groups of other calls are kept apart: any peer can make those."""
OTHERS = "others"
"""Stands for the reason of all calls beyond these numbers."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Key: TypeAlias = tuple[str, str, str, str]


@dataclass
class _Group:
    """Denied calls with the same caller, method and reason.

    Attributes:
        since: The time of the first call that is not written yet.
        due: When the group is to be written.
        method: The method of that first call.
        ids: The ids in the metadata of its error.
        count: How many calls are not written yet.
    """

    since: datetime
    due: datetime
    method: str
    ids: Mapping[str, str]
    count: int = 0


class DeniedCalls:
    """Counts denied calls by caller, method and reason, and writes them in the background.

    The first call of a group is written within seconds; those that follow within a minute share an entry with a count.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._authenticated: dict[Key, _Group] = {}
        self._unauthenticated: dict[Key, _Group] = {}
        self._writing = asyncio.Lock()

    def record(self, method: str, peer: str, error: FedroundError) -> None:
        """Counts a denied call.

        Args:
            method: Full name of the method.
            peer: The peer's address, as gRPC formats it.
            error: The error that the call ended with. Failures of the server itself are ignored.
        """
        if isinstance(error, Unavailable):
            return
        now, user_id = self._context.clock.now(), acting.get()
        if user_id:
            groups, limit, key = self._authenticated, MAX_AUTHENTICATED, (user_id, "", method, error.reason)
        else:
            # Without the port, which differs for each connection, and without the method: one peer can call them all.
            address = peer.rpartition(":")[0][:64]
            groups, limit, key = self._unauthenticated, MAX_UNAUTHENTICATED, ("", address, "", error.reason)
        ids = _ids(error)
        if key not in groups and len(groups) >= limit:
            key, method, ids = ("", "", "", OTHERS), "", {}
        group = groups.setdefault(key, _Group(now, now, method, ids))
        if not group.count:
            group.since, group.method, group.ids = now, method, ids
        group.count += 1

    async def run(self) -> None:
        """Writes the groups that are due, forever."""
        interval = FLUSH_INTERVAL
        while True:
            await self._context.clock.sleep(interval)
            interval = FLUSH_INTERVAL if await self.flush() else RETRY_INTERVAL

    async def flush(self, *, everything: bool = False) -> bool:
        """Writes the groups that are due, or all, in one transaction.

        Returns:
            Whether the database answered; otherwise they are kept for the next attempt.
        """
        async with self._writing:
            return await self._flush(everything=everything)

    async def _flush(self, *, everything: bool) -> bool:
        now, records = self._context.clock.now(), []
        written: list[tuple[_Group, int]] = []
        for groups in (self._authenticated, self._unauthenticated):
            for key, group in list(groups.items()):
                if group.due > now and not everything:
                    continue
                if not group.count:
                    # No such call for a whole interval.
                    del groups[key]
                    continue
                records.append(_record(key, group))
                written.append((group, group.count))
        if not records:
            return True
        try:
            await self._context.store.audit.add(records)
        except Unavailable as error:
            log.log(level_of(error), "recording denied calls: %s", error)
            return False
        for group, count in written:
            # More calls may have been counted during the transaction.
            group.count -= count
            group.since = now
            group.due = now + GROUP_INTERVAL
        return True


def _record(key: Key, group: _Group) -> AuditRecord:
    user_id, peer, _, reason = key
    facts = {"method": group.method, "peer": peer, "reason": reason, "count": group.count, "ids": dict(group.ids)}
    return AuditRecord("call_refused", subject=user_id, facts={**facts, "since": group.since.isoformat()})


def _ids(error: FedroundError) -> Mapping[str, str]:
    """Returns the UUIDs in an error's metadata: other values are unbounded, and may contain a token."""
    return {name: value for name, value in error.metadata.items() if UUID.fullmatch(value)}
