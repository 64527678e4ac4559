"""Reads small files ahead into memory."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Self

from fedround_server.domain.chunk import Chunk

SECONDS = 0.25
"""How long a small file may take to arrive; one that takes longer is written to disk while it arrives."""


class Arrival:
    """The chunks of a file, which are read in the background within its `async with` block.

    Attributes:
        declared: Its declared size in bytes.
        size_bytes: How much has arrived.
    """

    def __init__(self, chunks: AsyncIterator[Chunk], declared: int) -> None:
        """Reads nothing yet.

        Args:
            chunks: The file.
            declared: Its size in bytes. Nothing is read after more than that has arrived.
        """
        self.size_bytes = 0
        self._chunks = chunks
        self.declared = declared
        self._arrived: deque[Chunk] = deque()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops reading."""
        self._reading.cancel()
        # What the stream raised is for `rest`.
        with suppress(asyncio.CancelledError, Exception):
            await self._reading

    @property
    def chunks(self) -> Sequence[Chunk]:
        """What has arrived and was not taken by `rest`."""
        return list(self._arrived)

    async def is_whole(self) -> bool:
        """Waits for the end of the stream, but not long; returns whether the file has its declared size then."""
        await asyncio.wait([self._reading], timeout=SECONDS)
        return self._reading.done() and self._reading.exception() is None and self.size_bytes == self.declared

    async def rest(self) -> AsyncIterator[Chunk]:
        """Yields all chunks, also those that arrive later, and raises what the stream raises."""
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            if self._reading.done():
                self._reading.result()
                return
            self._changed.clear()
            await self._changed.wait()

    async def _read(self) -> None:
        try:
            async for chunk in self._chunks:
                self._arrived.append(chunk)
                self.size_bytes += len(chunk.data)
                self._changed.set()
                if self.size_bytes > self.declared:
                    break
        finally:
            self._changed.set()
