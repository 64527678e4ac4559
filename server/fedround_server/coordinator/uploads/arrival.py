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
    """The chunks of a small file. What does not come with the first one is read in the background meanwhile.

    A context manager: reading ends with its `async with` block.

    Attributes:
        declared: The file's declared size in bytes. Nothing is read after more than that has arrived.
        size_bytes: How much has arrived.
    """

    def __init__(self, chunks: AsyncIterator[Chunk], declared: int) -> None:
        """Reads nothing yet."""
        self.declared = declared
        self.size_bytes = 0
        self._chunks = chunks
        self._arrived: deque[Chunk] = deque()
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops reading."""
        if self._reading is not None:
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
        await self._take()
        if self.size_bytes == self.declared:
            # It came at once, as the SDK sends it: a task would take longer than all the rest.
            await self._take()
            return self.size_bytes == self.declared
        self._reading = asyncio.create_task(self._read())
        await asyncio.wait([self._reading], timeout=SECONDS)
        return self._reading.done() and self._reading.exception() is None and self.size_bytes == self.declared

    async def rest(self) -> AsyncIterator[Chunk]:
        """Yields all chunks, also those that arrive later, and raises what the stream raises."""
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            if self._reading is None:
                return
            if self._reading.done():
                self._reading.result()
                return
            self._changed.clear()
            await self._changed.wait()

    async def _take(self) -> bool:
        """Reads the next chunk; returns False at the end, or if there is more than was declared."""
        chunk = await anext(self._chunks, None)
        if chunk is None:
            return False
        self._arrived.append(chunk)
        self.size_bytes += len(chunk.data)
        self._changed.set()
        return self.size_bytes <= self.declared

    async def _read(self) -> None:
        try:
            while await self._take():
                pass
        finally:
            self._changed.set()
