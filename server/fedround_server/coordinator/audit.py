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
    """What can be asked of the audit log, and what no verb of the store tells it."""

    def __init__(self, context: Context) -> None:
        """Begins with no refusals."""
        self._context = context
        self._store = context.store.audit
        self.denied_calls = DeniedCalls(context)

    async def start(self) -> None:
        """Tells that the server starts, and writes refusals from now on."""
        await self._store.add([AuditRecord("server_started", facts={"version": _version()})])
        self._context.background.create_task(self.denied_calls.run(), name="write refusals")

    async def stop(self) -> None:
        """Tells that the server stops, as the last thing that it does; a start without this is one behind a crash."""
        await self.denied_calls.flush(everything=True)
        try:
            await self._store.add([AuditRecord("server_stopped", facts={"version": _version()})])
        except Unavailable as error:
            log.warning("noting the stop: %s", error)

    async def read(self, after: int, head: AuditHead) -> AsyncGenerator[list[AuditEntry], None]:
        """Reads the entries behind a sequence in batches, up to a head."""
        while after < head.sequence and (entries := await self._store.read(after, head.sequence, BATCH)):
            yield entries
            after = entries[-1].sequence


def _version() -> str:
    try:
        return version("fedround")
    except PackageNotFoundError:
        # It is not installed, but run from its sources.
        return "unknown"
