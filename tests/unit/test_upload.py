"""Taking in files: what happens between their bytes and their blob."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.blobs import chunk_of
from fedround_server.blobs.files import LocalFiles
from fedround_server.blobs.local import LocalBlobs
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.uploads.receive import Incoming, Received, Uploads
from fedround_server.coordinator.uploads.space import MIN_COUNTED_BYTES
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import (
    FedroundError,
    StoreUnavailable,
    TokenInvalid,
    UpdateExists,
    UpdateNotFinite,
    UploadIncomplete,
)
from fedround_server.domain.model import BlobRef
from fedround_server.domain.update import NormBound
from fedround_server.engine.format import gate
from fedround_server.engine.format.gate import LARGE
from fedround_server.engine.format.manifest import Layout, parse_header
from fedround_server.engine.jobs import CheckJob, CheckResult
from fedround_server.wakeups import Hub
from unit.safetensors_files import with_header, write

FILE = write({"w": np.ones(1000, np.float32)})
DIGEST = hashlib.sha256(FILE).hexdigest()


class SlowEngine:
    """An engine whose checks the test ends, and which reports their start."""

    def __init__(self, log: list[str]) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.files: LocalFiles | None = None
        self._log = log

    async def check(self, job: CheckJob) -> CheckResult:
        self.begun.set()
        await self.go_on.wait()
        assert self.files is not None
        self._log.append(f"checked {self.files.local_path(job.file).stat().st_size} bytes")
        return CheckResult()


def uploads(folder: Path, engine: "SlowEngine | Worker") -> Uploads:
    blobs = LocalBlobs(folder)
    engine.files = blobs.files
    parts = {"store": None, "background": None, "blobs": blobs, "engine": engine, "hub": Hub()}
    return Uploads(Context(**parts))  # type: ignore[arg-type]


def incoming(chunks: AsyncIterator[Chunk]) -> Incoming:
    return Incoming("user", chunks, DIGEST, len(FILE), upload_id="upload")


async def accept(received: Received) -> tuple[Received, bool]:
    return received, True


async def sent(note: Callable[[], None] = lambda: None) -> AsyncIterator[Chunk]:
    note()
    yield chunk_of(FILE)


async def test_the_next_try_waits_until_the_file_is_not_read(tmp_path: Path) -> None:
    log: list[str] = []
    engine = SlowEngine(log)
    receiver = uploads(tmp_path, engine)
    bound = NormBound(1.0, BlobRef(DIGEST, len(FILE)), "")  # the worker measures the distance
    first = asyncio.create_task(receiver.receive(incoming(sent()), None, accept, bound))
    await engine.begun.wait()
    first.cancel()
    second = asyncio.create_task(receiver.receive(incoming(sent(lambda: log.append("next try"))), None, accept, bound))
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


async def test_the_uploads_of_a_removed_user_end(tmp_path: Path) -> None:
    receiver = uploads(tmp_path, SlowEngine([]))

    async def endless() -> AsyncIterator[Chunk]:
        yield chunk_of(FILE[:100])
        await asyncio.Event().wait()

    tries = [
        asyncio.create_task(
            receiver.receive(Incoming(user, endless(), DIGEST, len(FILE), upload_id=upload_id), None, accept)
        )
        for user, upload_id in (("gone", "upload"), ("gone", None), ("other", "upload"))
    ]
    while await receiver.committed_size("other", "upload") < 100:
        await asyncio.sleep(0)
    await receiver.end("gone")
    for ended in tries[:2]:
        with pytest.raises(TokenInvalid):
            await ended
    assert [await receiver.committed_size(user, "upload") for user in ("gone", "other")] == [0, 100]
    assert not tries[2].done()
    tries[2].cancel()
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_an_unused_upload_is_removed_unless_it_is_being_written(tmp_path: Path) -> None:
    receiver, may_end = uploads(tmp_path, SlowEngine([])), asyncio.Event()

    async def halted() -> AsyncIterator[Chunk]:
        yield chunk_of(FILE[:100])
        await may_end.wait()

    one = Incoming("user", halted(), DIGEST, len(FILE), upload_id="upload")
    under_way = asyncio.create_task(receiver.receive(one, None, accept))
    while await receiver.committed_size("user", "upload") < 100:
        await asyncio.sleep(0)
    await receiver.abandon("user", "upload")
    assert await receiver.committed_size("user", "upload") == 100
    may_end.set()
    with pytest.raises(UploadIncomplete):
        await under_way
    await receiver.abandon("user", "upload")
    assert await receiver.committed_size("user", "upload") == 0


async def test_an_upload_may_end_by_itself_while_those_of_its_user_are_ended(tmp_path: Path) -> None:
    receiver = uploads(tmp_path, SlowEngine([]))

    async def endless(other: list["asyncio.Task[Any]"]) -> AsyncIterator[Chunk]:
        yield chunk_of(FILE[:100])
        try:
            await asyncio.Event().wait()
        finally:
            other[0].cancel()
            await asyncio.wait(other)

    async def halted() -> AsyncIterator[Chunk]:
        yield chunk_of(FILE[:100])
        await asyncio.Event().wait()

    second: list[asyncio.Task[Any]] = []
    first = asyncio.create_task(
        receiver.receive(Incoming("gone", endless(second), DIGEST, len(FILE), upload_id="first"), None, accept)
    )
    second.append(
        asyncio.create_task(
            receiver.receive(Incoming("gone", halted(), DIGEST, len(FILE), upload_id="second"), None, accept)
        )
    )
    while await receiver.committed_size("gone", "second") < 100:
        await asyncio.sleep(0)
    await receiver.end("gone")
    with pytest.raises(TokenInvalid):
        await first
    assert second[0].cancelled()


@pytest.mark.parametrize(("length", "aside"), [(LARGE, False), (LARGE + 1, True)])
async def test_a_large_header_is_read_aside_of_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, aside: bool
) -> None:
    readers = []

    def read(header: bytes) -> Layout:
        readers.append(threading.current_thread())
        return parse_header(header)

    monkeypatch.setattr(gate, "parse_header", read)
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    file = with_header(json.dumps(entry).encode().ljust(length), bytes(4))

    async def chunks() -> AsyncIterator[Chunk]:
        for start in range(0, len(file), 1000):
            yield chunk_of(file[start : start + 1000])

    engine = SlowEngine([])
    engine.go_on.set()
    received = await uploads(tmp_path, engine).receive(Incoming("user", chunks(), None, None), None, accept)
    assert received.blob.size_bytes == len(file)
    assert [reader is not threading.main_thread() for reader in readers] == [aside]


@pytest.mark.parametrize(
    ("outcome", "stays"),
    [("used", True), ("unused", False), (UpdateExists("no"), False), (StoreUnavailable("perhaps"), True)],
)
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_file_stays_if_a_row_refers_to_it_or_may(
    tmp_path: Path, outcome: str | FedroundError, stays: bool, cancelled: bool
) -> None:
    engine = SlowEngine([])
    engine.go_on.set()
    receiver, accepting, may_end = uploads(tmp_path, engine), asyncio.Event(), asyncio.Event()
    counted = []

    async def decided(received: Received) -> tuple[str, bool]:
        accepting.set()
        await may_end.wait()
        # It counts against its user up to here.
        counted.append(receiver.space._bytes["user"])
        if isinstance(outcome, FedroundError):
            raise outcome
        return outcome, outcome == "used"

    call = asyncio.create_task(receiver.receive(incoming(sent()), None, decided))
    await accepting.wait()
    if cancelled:
        call.cancel()
        await asyncio.sleep(0)
    may_end.set()
    await asyncio.wait([call])
    assert call.cancelled() == cancelled
    assert counted == [MIN_COUNTED_BYTES]
    assert not receiver.space._bytes
    assert len(list((tmp_path / "objects").glob("*/*"))) == stays


class Worker:
    """An engine that says what the test expects it to be asked for, and nothing if it must not be."""

    def __init__(self, *found: CheckResult) -> None:
        self._found = list(found)
        self.files: LocalFiles | None = None

    async def check(self, _: CheckJob) -> CheckResult:
        return self._found.pop()


BAD_FILE = write({"v": np.ones(1000, np.float32), "w": np.full(1000, np.inf, np.float32), "x": np.ones(9)})


def large(file: bytes, offset: int = 0, end: int | None = None, training_id: str | None = None) -> Incoming:
    """A file whose size is not declared, as if it were a large one, in chunks of odd sizes."""

    async def chunks() -> AsyncIterator[Chunk]:
        for start in range(offset, end or len(file), 999):
            yield chunk_of(file[start : min(start + 999, end or len(file))])

    return Incoming("user", chunks(), None, None, "upload", offset, training_id)


async def test_the_worker_is_not_asked_whether_numbers_are_finite(tmp_path: Path) -> None:
    receiver = uploads(tmp_path, Worker())
    assert (await receiver.receive(large(FILE), None, accept)).is_finite
    with pytest.raises(UpdateNotFinite, match="tensor 'w' contains NaN or Inf: nothing of the file was taken"):
        await receiver.receive(large(BAD_FILE), None, accept)
    with pytest.raises(UpdateNotFinite, match="tensor 'w'"):
        await receiver.receive(large(BAD_FILE), None, accept, NormBound(1.0, BlobRef(DIGEST, len(FILE)), ""))
    assert await receiver.committed_size("user", "upload") == 0
    assert not (await receiver.receive(large(BAD_FILE), None, accept, allow_non_finite=True)).is_finite


@pytest.mark.parametrize("offset", [100, 6000, len(BAD_FILE) - 73, len(BAD_FILE)])
async def test_what_an_earlier_attempt_left_is_checked(tmp_path: Path, offset: int) -> None:
    receiver = uploads(tmp_path, Worker())
    with pytest.raises(UploadIncomplete):
        await receiver.receive(large(BAD_FILE, end=min(offset, len(BAD_FILE) - 1)), None, accept)
    offset = await receiver.committed_size("user", "upload")
    with pytest.raises(UpdateNotFinite, match="tensor 'w'"):
        await receiver.receive(large(BAD_FILE, offset), None, accept)


async def test_the_worker_compares_what_is_not_finite_with_a_model_that_may_have_the_same(tmp_path: Path) -> None:
    model = BlobRef(DIGEST, len(FILE))
    receiver = uploads(tmp_path, Worker(CheckResult(not_finite="v"), CheckResult()))
    assert (await receiver.receive(large(FILE, training_id="t"), None, accept, model=model)).is_finite
    assert (await receiver.receive(large(BAD_FILE, training_id="t"), None, accept, model=model)).is_finite
    with pytest.raises(UpdateNotFinite, match="tensor 'v' contains NaN or Inf where the model has none"):
        await receiver.receive(large(BAD_FILE, training_id="t"), None, accept, model=model)
