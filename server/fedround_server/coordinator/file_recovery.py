"""The recovery of small files that an earlier process had in its journal."""

import logging

from fedround_server.coordinator.collection import COLLECTION_BATCH
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import in_thread

log = logging.getLogger(__name__)


async def recover_files(context: Context) -> None:
    """Makes small files durable that an earlier process has accepted; before serving.

    Files that nothing needs any more were removed on purpose, and stay so.

    Raises:
        OSError: One cannot be read or written.
        StoreUnavailable: The database does not answer.
    """
    digests = sorted(await in_thread(context.blobs.unsettled))
    needed: set[str] = set()
    for start in range(0, len(digests), COLLECTION_BATCH):
        needed |= await context.store.models.digests_in_use(digests[start : start + COLLECTION_BATCH])
    count = await in_thread(context.blobs.recover, needed)
    if count:
        log.warning("made %d files anew from the journal: the machine had lost them", count)
