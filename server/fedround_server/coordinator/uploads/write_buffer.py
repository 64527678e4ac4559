"""The way of a file from its stream to the disk: what has arrived is hashed and written while more arrives."""

import asyncio
import logging
from types import TracebackType
from typing import Self

from fedround_server.blobs import BlobWriter
from fedround_server.coordinator.tasks import await_even_if_cancelled
from fedround_server.failpoints import reached

log = logging.getLogger(__name__)
LEAST = 2 << 20
"""Bytes that are worth the way to a thread, if more may come soon."""
MOST = 4 << 20
"""Bytes that may wait while those before them are written."""
SOON = 0.01
"""Seconds after which what waits is written, however little it is: a slow sender may be cut off at any time."""


class WriteBuffer:
    """Writes in a thread, one batch after the other. Its block ends when all that came in is written, if it can be."""

    def __init__(self, writer: BlobWriter) -> None:
        """Goes on behind what the writer has.

        Args:
            writer: Where the bytes go; nobody else writes to it during the block.
        """
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._batch: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        # How much of the file came in, with what waits.
        self.size_bytes = writer.size_bytes

    async def __aenter__(self) -> Self:
        """Enters the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Has the rest written; when the block failed, its error is what counts."""
        self._start()
        while self._batch is not None:
            await await_even_if_cancelled(asyncio.wait([self._batch]))
            self._start()
        if error is None:
            self._check()
        elif self._failure is not None and self._failure is not error:
            log.debug("what waited could not be written: %s", self._failure)

    async def write(self, chunk: bytes) -> None:
        """Takes the next bytes, and waits while too many wait.

        Raises:
            DiskFull: There is no room for what came before.
            OSError: It could not be written.
        """
        self._check()
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        self.size_bytes += len(chunk)
        if self._batch is None:
            self._consider()
        elif self._waiting_bytes >= MOST:
            await asyncio.wait([self._batch])

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _consider(self) -> None:
        if self._waiting_bytes >= LEAST:
            self._start()
        elif self._waiting and self._timer is None:
            self._timer = self._loop.call_later(SOON, self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._batch is not None or not self._waiting:
            return
        chunks, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._batch = self._loop.run_in_executor(None, self._write, chunks)
        self._batch.add_done_callback(self._go_on)

    def _write(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self._writer.write(chunk)
            reached("upload.chunk_written")

    def _go_on(self, batch: asyncio.Future[None]) -> None:
        self._batch = None
        self._failure = batch.exception()
        if self._failure is not None:
            # What was not written leaves a gap, and nothing may come behind it.
            self._waiting = []
        else:
            self._consider()
