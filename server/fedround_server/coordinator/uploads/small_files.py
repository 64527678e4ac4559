"""Checks and stores small files that arrive at the same time together: in one call of a thread, with one sync."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedround_server.batch import Batch
from fedround_server.blobs import BlobDigest, Blobs, SmallFile
from fedround_server.coordinator.tasks import in_thread
from fedround_server.coordinator.uploads.body import BodyReceiver
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.model import BlobRef
from fedround_server.engine.jobs import CheckResult
from fedround_server.failpoints import reached


@dataclass(frozen=True, slots=True)
class Arrived:
    """A small file in memory.

    Attributes:
        chunks: Its bytes.
        body: Has seen its header.
        check_numbers: Raises an error about numbers in which something was found.
    """

    chunks: Sequence[Chunk]
    body: BodyReceiver
    check_numbers: Callable[[CheckResult], object]


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
    digest, numbers = BlobDigest(), file.body.numbers
    try:
        for data, crc32c in file.chunks:
            digest.update(data, crc32c)
        blob = digest.blob
        file.body.check_complete(blob)
        reached("upload.complete")
        for data, _ in file.chunks:
            numbers.feed(data)
        reached("upload.checked")
        file.check_numbers(numbers.found)
    except Exception as error:
        return error
    return SmallFile(blob, [chunk.data for chunk in file.chunks])
