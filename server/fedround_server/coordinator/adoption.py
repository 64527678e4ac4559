"""New blobs, which a transaction refers to or not."""

from collections.abc import Awaitable
from typing import TypeVar

from fedround_server.blobs import Blobs
from fedround_server.coordinator.tasks import in_thread
from fedround_server.domain.errors import FedroundError, Unavailable
from fedround_server.domain.model import BlobRef

R = TypeVar("R")


async def decide(blobs: Blobs, blob: BlobRef, transaction: Awaitable[tuple[R, bool]]) -> R:
    """Awaits the transaction for which a blob was committed, and removes the blob if no row refers to it.

    Args:
        blobs: The store of the blob.
        blob: The blob.
        transaction: Returns a result, and whether a row refers to the blob now.

    Raises:
        FedroundError: The transaction raised it, and changed nothing.
    """
    is_used = True
    try:
        result, is_used = await transaction
    except Unavailable:
        # The transaction may have been committed all the same.
        raise
    except FedroundError:
        is_used = False
        raise
    finally:
        if is_used:
            blobs.keep(blob)
        else:
            await in_thread(blobs.release, blob)
    return result
