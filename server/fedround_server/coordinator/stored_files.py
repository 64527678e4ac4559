"""Reads whole files that seem damaged, or whose checksums are not known; once, however many wait for the result."""

import asyncio
import logging

from fedround_server.blobs import BlobDamaged
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import in_thread, opened_in_thread, report_fault
from fedround_server.domain.model import BlobRef

log = logging.getLogger(__name__)


class StoredFiles:
    """Examines stored files by their SHA-256, and keeps the checksums of those that are intact."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._examinations: dict[str, asyncio.Task[BlobRef]] = {}

    async def with_checksums(self, blob: BlobRef) -> BlobRef:
        """Returns a reference with checksums. A file that an earlier version of the server stored is examined first.

        Raises:
            BlobDamaged: It was examined, and is damaged.
        """
        return blob if blob.checksums else await self.examine(blob)

    async def verify(self, blob: BlobRef) -> None:
        """Reads all blocks of a file.

        Raises:
            BlobDamaged: One does not have the bytes that were stored.
        """
        known = await self.with_checksums(blob)
        async with opened_in_thread(lambda: self._context.blobs.open(known, 0)) as file:
            while (await in_thread(file.read)).data:
                pass

    async def examine(self, blob: BlobRef) -> BlobRef:
        """Compares a file with its SHA-256, and stores its checksums if others were known, or none.

        Raises:
            BlobDamaged: The file is damaged.
        """
        running = self._examinations.get(blob.sha256)
        if running is None:
            running = asyncio.create_task(self._examine(blob))
            self._examinations[blob.sha256] = running
            running.add_done_callback(lambda _: self._examinations.pop(blob.sha256))
            # All callers may have left.
            running.add_done_callback(report_fault)
        # A caller that is cancelled must not cancel the others.
        return await asyncio.shield(running)

    async def is_intact(self, blob: BlobRef) -> bool:
        """Returns whether a file has the bytes that were stored; logs what is wrong with it."""
        try:
            await self.examine(blob)
        except BlobDamaged as error:
            log.error("%s", error)
            return False
        return True

    async def _examine(self, blob: BlobRef) -> BlobRef:
        found = await in_thread(self._context.blobs.examine, blob)
        if found.checksums != blob.checksums:
            await self._context.store.models.keep_checksums(found)
        return found
