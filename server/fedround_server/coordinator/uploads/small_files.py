"""Checks and stores small files that arrive at the same time together: in one call of a thread, with one sync."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedround_server.batch import Batch
from fedround_server.blobs import BlobDigest, Blobs, SmallFile
from fedround_server.coordinator.tasks import in_thread
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.model import BlobRef
from fedround_server.engine.format.manifest import Layout
from fedround_server.engine.small_files import find_not_finite
from fedround_server.failpoints import reached


@dataclass(frozen=True, slots=True)
class Arrived:
    """A small file in memory.

    Attributes:
        chunks: Its bytes.
        check_complete: Checks its size and digest; returns what its header says.
        check_finite: Called with the name of a tensor that has NaN or Inf, or None; may raise an error.
    """

    chunks: Sequence[Chunk]
    check_complete: Callable[[BlobRef], Layout]
    check_finite: Callable[[str | None], object]


class SmallFiles:
    """Stores small files. Those that arrive while others are being stored are stored together."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._batch: Batch[Arrived, BlobRef] = Batch(self._store_in_thread)

    async def store(self, file: Arrived) -> BlobRef:
        """Makes a file a blob, durably.

        Raises:
            DiskFull: There is no room for it.
            OSError: It cannot be made durable.
            FedroundError: One of its checks raised it.
        """
        return await self._batch.ask(file)

    async def _store_in_thread(self, files: Sequence[Arrived]) -> Sequence[BlobRef | Exception]:
        return await in_thread(self._store, files)

    def _store(self, files: Sequence[Arrived]) -> Sequence[BlobRef | Exception]:
        checked = [_check(file) for file in files]
        good = [one for one in checked if isinstance(one, SmallFile)]
        problems = iter(self._blobs.store(good) if good else ())
        return [one if isinstance(one, Exception) else next(problems) or one.blob for one in checked]


def _check(file: Arrived) -> SmallFile | Exception:
    try:
        digest = BlobDigest()
        for data, crc32c in file.chunks:
            digest.update(data, crc32c)
        blob = digest.blob
        layout = file.check_complete(blob)
        reached("upload.complete")
        data = file.chunks[0].data if len(file.chunks) == 1 else b"".join(chunk.data for chunk in file.chunks)
        not_finite = find_not_finite(layout, data)
        reached("upload.checked")
        file.check_finite(not_finite)
        return SmallFile(blob, data)
    except Exception as error:
        return error
