"""The collection of files that nothing needs any more."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fedround_server.blobs import UNREFERENCED_SECONDS, Blobs
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import in_thread
from fedround_server.coordinator.uploads.receive import Uploads
from fedround_server.domain.errors import BackupInProgress

log = logging.getLogger(__name__)
COLLECTION_BATCH = 500
"""How many blobs one query looks up: the store serves other verbs in between."""
SOONEST_SECONDS = 3600.0
"""How old a blob must be for a collection that an admin asks for.

A blob without a row may belong to a transaction that is still to come: the versions of shadow aggregations are computed
between the file of a version and its commit, and PostgreSQL may commit what it was sent before a connection was lost.
"""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection has removed."""

    num_files: int
    size_bytes: int


class Collection:
    """Removes blobs without a row, and uploads that were not continued for a day."""

    def __init__(self, context: Context, uploads: Uploads) -> None:
        self._store = context.store
        self._blobs: Blobs = context.blobs
        self._peers = context.peers
        self._uploads = uploads
        self._one_at_a_time = asyncio.Lock()

    async def collect(self, min_seconds: float = UNREFERENCED_SECONDS) -> Collected:
        """Removes what nothing needs.

        Args:
            min_seconds: How long a blob must have been there, in seconds, and uploads of its bytes must be past.

        Raises:
            BackupInProgress: A backup is being made, which may need the blobs.
            StoreUnavailable: The database does not answer.
        """
        if self._peers.others:
            # What they have not decided about is not known here.
            min_seconds = max(min_seconds, UNREFERENCED_SECONDS)
        async with self._one_at_a_time:
            with self._blobs.collecting() as may_collect:
                if not may_collect:
                    raise BackupInProgress
                sizes = await self._collect_blobs(min_seconds)
            return _collected([*sizes, *await self._uploads.collect()])

    async def collect_uploads(self) -> Collected:
        """Removes uploads to this server that were not continued, and counts what all replicas have stored.

        Another replica collects the blobs of all.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        async with self._one_at_a_time:
            await in_thread(self._blobs.measure)
            return _collected(await self._uploads.collect())

    async def _collect_blobs(self, min_seconds: float) -> list[int]:
        old = await in_thread(self._blobs.old, min_seconds)
        sizes: list[int] = []
        for start in range(0, len(old), COLLECTION_BATCH):
            batch = old[start : start + COLLECTION_BATCH]
            # Only an upload gives a digest its first row, and that renews the time of the blob.
            in_use = await self._store.models.digests_in_use(batch)
            sizes += await in_thread(self._blobs.collect, set(batch) - in_use, min_seconds)
        return sizes


def _collected(sizes: Sequence[int]) -> Collected:
    """Logs what was removed."""
    if sizes:
        log.info("deleted %d files of %d bytes that nothing needs", len(sizes), sum(sizes))
    return Collected(len(sizes), sum(sizes))
