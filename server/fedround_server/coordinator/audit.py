"""Use cases about the audit log."""

import logging
from collections.abc import AsyncGenerator
from importlib.metadata import PackageNotFoundError, version

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.denied_calls import DeniedCalls
from fedround_server.domain.audit import AuditEntry, AuditHead, AuditRecord
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
            await self._store.add([AuditRecord("server_stopped", facts={"version": _version()})])
        except Unavailable as error:
            log.warning("recording the stop: %s", error)

    async def read(self, after: int, head: AuditHead) -> AsyncGenerator[list[AuditEntry], None]:
        """Reads the entries after a sequence in batches, up to a head."""
        while after < head.sequence and (entries := await self._store.read(after, head.sequence, BATCH)):
            yield entries
            after = entries[-1].sequence


def _version() -> str:
    try:
        return version("fedround")
    except PackageNotFoundError:
        # It runs from its sources, without being installed.
        return "unknown"
