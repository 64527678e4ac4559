"""Taking in files: what happens between their bytes and their blob."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np

from fedround_server.blobs import BlobStore
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.upload import Incoming, Uploads
from fedround_server.hub import Hub
from unit.safetensors_files import write

FILE = write({"w": np.ones(1000, np.float32)})


class SlowEngine:
    """An engine whose checks end when they are told to, and say so."""

    def __init__(self, log: list[str]) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._log = log

    async def find_not_finite(self, path: Path) -> str | None:
        self.begun.set()
        await self.go_on.wait()
        self._log.append(f"checked {path.stat().st_size} bytes")
        return None


def uploads(folder: Path, engine: SlowEngine) -> Uploads:
    parts = {"store": None, "tasks": None, "blobs": BlobStore(folder), "engine": engine, "hub": Hub()}
    return Uploads(Context(**parts))  # type: ignore[arg-type]


def incoming(chunks: AsyncIterator[bytes]) -> Incoming:
    return Incoming("user", chunks, hashlib.sha256(FILE).hexdigest(), len(FILE), upload_id="upload")


async def sent(note: Callable[[], None] = lambda: None) -> AsyncIterator[bytes]:
    note()
    yield FILE


async def test_the_next_try_waits_until_nobody_reads_the_file(tmp_path: Path) -> None:
    log: list[str] = []
    engine = SlowEngine(log)
    receiver = uploads(tmp_path, engine)
    first = asyncio.create_task(receiver.receive(incoming(sent()), None))
    await engine.begun.wait()
    first.cancel()
    second = asyncio.create_task(receiver.receive(incoming(sent(lambda: log.append("next try"))), None))
    # It would have begun long ago; and a second cancellation changes nothing.
    for _ in range(10):
        await asyncio.sleep(0)
    first.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    engine.go_on.set()
    received = await second
    assert first.cancelled()
    assert log == [f"checked {len(FILE)} bytes", "next try", f"checked {len(FILE)} bytes"]
    assert received.blob.size_bytes == len(FILE)
