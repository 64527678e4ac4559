"""Reading a blob while its caller comes and goes."""

import asyncio
import threading
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pytest

from fedround_server.coordinator.model import Models
from fedround_server.coordinator.served_files import ServedFile
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.model import BlobRef


class SlowFile:
    """A file whose read takes as long as a test wants."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.ended = threading.Event()
        self.closed = False
        self.closed_under_the_reader = False

    def read_cached(self) -> None:
        """Has nothing in memory."""

    def read(self) -> Chunk:
        self.begun.set()
        self.may_end.wait(30)
        self.closed_under_the_reader = self.closed
        self.ended.set()
        return Chunk(b"bytes", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


async def test_a_download_that_is_given_up_closes_its_file_behind_the_reader() -> None:
    file = SlowFile()
    context: Any = SimpleNamespace(blobs=SimpleNamespace(open_cached=lambda *_: file))
    uploads: Any = None
    chunks = Models(context, uploads, StoredFiles(context)).read(
        ServedFile.of("it", 0, BlobRef("0" * 64, 5, b"0000")), 0
    )
    download = asyncio.ensure_future(anext(chunks))
    await asyncio.to_thread(file.begun.wait, 30)
    download.cancel()
    # More than enough for the cancellation to arrive, while the read is in progress.
    for _ in range(20):
        await asyncio.sleep(0)
    file.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await download
    await asyncio.to_thread(file.ended.wait, 30)
    assert (file.closed, file.closed_under_the_reader) == (True, False)
