"""Use cases about the audit log."""

import logging
from collections.abc import AsyncGenerator
from importlib.metadata import PackageNotFoundError, version

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.denied_calls import DeniedCalls
from fedround_server.domain.audit import SERVER, AuditEntry, AuditHead, AuditPage, AuditRecord
from fedround_server.domain.errors import Unavailable

log = logging.getLogger(__name__)
BATCH = 500


class Audit:
    """Reads the audit log, and writes the entries that belong to no other verb of the store."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store.audit
        self.denied_calls = DeniedCalls(context)

    async def start(self) -> None:
        """Records the start of the server, and starts to write denied calls in the background."""
        await self._store.add([AuditRecord("server_started", facts={"version": _version()})])
        self._context.background.create_task(self.denied_calls.run(), name="record denied calls")

    async def stop(self) -> None:
        """Records the stop of the server, as its last action: a start that does not follow a stop follows a crash."""
        await self.denied_calls.flush(everything=True)
        try:
            # For those who read the log while the server is stopped.
            await self._store.record_heads()
            await self._store.add([AuditRecord("server_stopped", facts={"version": _version()})])
        except Unavailable as error:
            log.warning("recording the stop: %s", error)

    async def head(self, chain: str = SERVER) -> AuditHead:
        """Returns the head of a chain, by default the server's; that of a training without one has the sequence 0."""
        return await self._store.head(chain)

    async def record_heads(self) -> AuditHead:
        """Returns a head of the server's chain that covers what was written to all chains before."""
        await self._store.record_heads()
        return await self._store.head()

    async def read(self, chain: str, after: int, until: int) -> AsyncGenerator[list[AuditEntry], None]:
        """Reads the entries of a chain in batches: those after one sequence, up to and including another."""
        while after < until and (entries := await self._store.read(chain, after, until, BATCH)):
            yield entries
            after = entries[-1].sequence

    async def read_trainings(self, chain: str, after: int, until: int) -> AsyncGenerator[AuditPage, None]:
        """Reads the chains of trainings in pages, behind an entry; those that begin after `until` are left out."""
        position: tuple[str, int] | None = (chain, after)
        while position is not None:
            page = await self._store.read_on(*position, until, BATCH)
            yield page
            position = page.next


def _version() -> str:
    try:
        return version("fedround")
    except PackageNotFoundError:
        # It runs from its sources, without being installed.
        return "unknown"
