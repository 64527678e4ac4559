"""The models that are sent with the starts of rounds, each file read once for all subscribers."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.model import Models
from fedround_server.coordinator.served_files import ModelPart
from fedround_server.domain.errors import ModelDamaged, ModelNotFound
from fedround_server.domain.event import ModelInfo, RoundStarted
from fedround_server.domain.model import BlobRef

MAX_INLINE_BYTES = 1 << 20
"""The largest file that is sent in an event: a message has at most twice as much."""
CACHE_BYTES = 8 << 20
"""How many bytes of files are kept for the next subscriber."""
KEEP_SECONDS = 5.0
"""A file that was not sent for so long is dropped: all subscribers of a round get its start at once."""
SENDING_BYTES = 64 << 20
"""How many bytes are being sent at a time. gRPC has a copy of each message until its subscriber takes it."""


@dataclass(eq=False, slots=True)
class InlineModel:
    """A file in memory.

    Attributes:
        sha256: Its digest.
        file: Its bytes.
        message: The message that was made with it last, and what the message depends on.
    """

    sha256: str
    file: bytes
    message: tuple[Hashable, bytes] = (None, b"")


@dataclass(eq=False, slots=True)
class _Entry:
    """A file that is being read, or was; None if it cannot be.

    Attributes:
        used: Whether it was asked for since the last look.
    """

    size_bytes: int
    reading: "asyncio.Task[InlineModel | None]"
    used: bool = True


class InlineModels:
    """Lends the files of rounds' models to those who send them, with a small cache."""

    def __init__(self, context: Context, models: Models) -> None:
        self._counters = context.counters
        self._models = models
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._sending = 0

    @asynccontextmanager
    async def lend(
        self, started: RoundStarted, user_id: str, limit: int, sent: str = ""
    ) -> AsyncIterator[InlineModel | None]:
        """Lends the file of a round's model while it is sent to a subscriber, who would download it otherwise.

        What is sent counts as downloaded, unless the block raises. There is none for subscribers that the round does
        not ask, for models that are assigned or stored as a delta, and while too much is being sent: slow subscribers
        must not fill the memory.

        Args:
            started: The start of the round, as the subscriber reads it.
            user_id: The subscriber.
            limit: The largest file in bytes that it takes.
            sent: The digest of the file that it was sent last.
        """
        blob = started.model.blob
        room = min(limit, SENDING_BYTES - self._sending)
        is_wanted = started.asked and not started.assigned and blob.sha256 != sent and blob.size_bytes <= room
        if not is_wanted or not isinstance(blob, BlobRef):
            yield None
            return
        self._sending += blob.size_bytes
        try:
            model = await self._read(started.model, blob, user_id)
            yield model
            if model is not None:
                self._counters.sent_bytes += blob.size_bytes
        finally:
            self._sending -= blob.size_bytes

    async def _read(self, info: ModelInfo, blob: BlobRef, user_id: str) -> InlineModel | None:
        entry = self._entries.get(blob.sha256)
        if entry is None:
            entry = _Entry(blob.size_bytes, asyncio.create_task(self._read_file(info, user_id)))
            entry.reading.add_done_callback(partial(self._drop_failed, blob.sha256, entry))
            self._entries[blob.sha256] = entry
            asyncio.get_running_loop().call_later(KEEP_SECONDS, self._drop_unused, blob.sha256, entry)
            while sum(one.size_bytes for one in self._entries.values()) > CACHE_BYTES:
                self._entries.popitem(last=False)
        entry.used = True
        # A subscriber that leaves must not cancel the others.
        return entry.reading.result() if entry.reading.done() else await asyncio.shield(entry.reading)

    async def _read_file(self, info: ModelInfo, user_id: str) -> InlineModel | None:
        """Reads a file, verified by its checksums like a download; returns None if that would fail."""
        try:
            # Who is asked may download the model, so it does not matter which of them the file is found for.
            file = await self._models.find_file(info.model_id, info.version, user_id, "", ModelPart.MODEL, ())
            async with aclosing(self._models.read(file, 0)) as chunks:
                return InlineModel(file.sha256, b"".join([chunk.data async for chunk in chunks]))
        except (ModelDamaged, ModelNotFound):
            return None

    def _drop_failed(self, sha256: str, entry: _Entry, reading: "asyncio.Task[InlineModel | None]") -> None:
        """Has the next subscriber try again after an error that may pass, such as one of the database."""
        is_failed = reading.cancelled() or reading.exception() is not None
        if is_failed and self._entries.get(sha256) is entry:
            del self._entries[sha256]

    def _drop_unused(self, sha256: str, entry: _Entry) -> None:
        if self._entries.get(sha256) is not entry:
            return
        if entry.used:
            entry.used = False
            asyncio.get_running_loop().call_later(KEEP_SECONDS, self._drop_unused, sha256, entry)
        else:
            del self._entries[sha256]
