"""Writes a file while more of it arrives."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Self

from fedround_server.blobs import BlobWriter
from fedround_server.coordinator.tasks import await_even_if_cancelled
from fedround_server.domain.chunk import Chunk
from fedround_server.failpoints import reached

log = logging.getLogger(__name__)
MAX_BUFFERED = 4 << 20
"""Bytes that may be buffered while earlier ones are written. Half of them are worth waking a thread."""
MAX_BUFFERED_TOGETHER = 8 << 20
"""Bytes that all uploads in progress may buffer, if that is at least MIN_BUFFERED for each."""
MIN_BUFFERED = 1 << 20
FLUSH_DELAY = 0.01
"""Seconds after which buffered bytes are written, however few: a slow sender may lose its connection at any time."""


def share_of_buffers(uploads: int) -> int:
    """Returns how many bytes each of some uploads in progress may buffer: one disk writes for all of them."""
    return max(MIN_BUFFERED, min(MAX_BUFFERED, MAX_BUFFERED_TOGETHER // max(1, uploads)))


class WriteBuffer:
    """Hashes and writes in a thread, one batch after the other.

    Its block ends when everything is written, or cannot be.
    """

    def __init__(
        self,
        writer: BlobWriter,
        max_buffered: Callable[[], int] = lambda: MAX_BUFFERED,
        see: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """Continues after what the writer has. Nothing else may write to it during the block.

        Args:
            writer: Writes the file.
            max_buffered: Returns how many bytes may be buffered now.
            see: Called in the thread with what is written.
        """
        self._writer = writer
        self._max_buffered = max_buffered
        self._see = see
        self._loop = asyncio.get_running_loop()
        self._buffered: list[Chunk] = []
        self._buffered_bytes = 0
        self._batch: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        # How much of the file has arrived, with what is buffered.
        self.size_bytes = writer.size_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Writes the rest. If the block failed, its error takes precedence over one of the writer."""
        self._flush()
        while self._batch is not None:
            await await_even_if_cancelled(asyncio.wait([self._batch]))
            self._flush()
        if error is None:
            self._raise_failure()
        elif self._failure is not None and self._failure is not error:
            log.debug("buffered bytes could not be written: %s", self._failure)

    async def write(self, chunk: Chunk) -> None:
        """Takes the next bytes; waits while too many are buffered.

        Raises:
            DiskFull: There is no room for earlier bytes.
            OSError: Earlier bytes could not be written.
        """
        self._raise_failure()
        self._buffered.append(chunk)
        self._buffered_bytes += len(chunk.data)
        self.size_bytes += len(chunk.data)
        if self._batch is None:
            self._flush_or_wait()
        elif self._buffered_bytes >= self._max_buffered():
            await asyncio.wait([self._batch])

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _flush_or_wait(self) -> None:
        if self._buffered_bytes >= self._max_buffered() // 2:
            self._flush()
        elif self._buffered and self._timer is None:
            self._timer = self._loop.call_later(FLUSH_DELAY, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._batch is not None or not self._buffered:
            return
        chunks, self._buffered, self._buffered_bytes = self._buffered, [], 0
        self._batch = self._loop.run_in_executor(None, write_chunks, self._writer, chunks, self._see)
        self._batch.add_done_callback(self._on_written)

    def _on_written(self, batch: asyncio.Future[None]) -> None:
        self._batch = None
        self._failure = batch.exception()
        if self._failure is not None:
            # What was not written leaves a gap, and nothing may follow it.
            self._buffered = []
        else:
            self._flush_or_wait()


def write_chunks(writer: BlobWriter, chunks: Sequence[Chunk], see: Callable[[bytes], None]) -> None:
    """Hashes and writes chunks, and passes each to `see`.

    Raises:
        DiskFull: There is no room for them.
        OSError: They could not be written.
    """
    for chunk in chunks:
        writer.write(chunk.data, chunk.crc32c)
        see(chunk.data)
        reached("upload.chunk_written")
