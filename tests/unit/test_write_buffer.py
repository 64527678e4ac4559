"""The way of a file to the disk: all that came in is written, in order, in whatever pieces and at whatever pace."""

import asyncio
import hashlib
import threading
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.blobs import chunk_of
from fedround_server.blobs import BLOCK_BYTES, UploadRef
from fedround_server.blobs.writer import LocalWriter
from fedround_server.coordinator.uploads.write_buffer import MAX_BUFFERED, MIN_BUFFERED, WriteBuffer, share_of_buffers
from fedround_server.domain.errors import DiskFull


def checksums(data: bytes) -> bytes:
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    return b"".join(google_crc32c.value(block).to_bytes(4, "little") for block in blocks)


FLUSH_BYTES = MAX_BUFFERED // 2
SIZES = st.sampled_from([1, 100, FLUSH_BYTES // 3, FLUSH_BYTES, MAX_BUFFERED, BLOCK_BYTES, BLOCK_BYTES - 1])
REF = UploadRef("user", "upload")
PAUSES = st.sampled_from([0.0, 0.0, 0.0, 0.02])


@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.tuples(SIZES, PAUSES), max_size=6))
def test_all_that_came_in_is_written_in_order(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, float]]
) -> None:
    path = tmp_path_factory.mktemp("intake") / "file"
    chunks = [bytes([number]) * size for number, (size, _) in enumerate(pieces)]

    async def take() -> None:
        with LocalWriter(REF, path) as writer:
            async with WriteBuffer(writer) as intake:
                for chunk, (_, pause) in zip(chunks, pieces, strict=True):
                    await intake.write(chunk_of(chunk))
                    if pause:
                        await asyncio.sleep(pause)
            assert intake.size_bytes == writer.size_bytes
            assert writer.staged.blob.checksums == checksums(b"".join(chunks))
            assert writer.staged.blob.sha256 == hashlib.sha256(b"".join(chunks)).hexdigest()

    asyncio.run(take())
    assert (path.read_bytes() if path.exists() else b"") == b"".join(chunks)


async def test_little_that_came_in_is_written_soon(tmp_path: Path) -> None:
    with LocalWriter(REF, tmp_path / "file") as writer:
        async with WriteBuffer(writer) as intake:
            await intake.write(chunk_of(b"little"))
            while writer.size_bytes < 6:
                await asyncio.sleep(0)


async def test_nothing_is_written_behind_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = iter([False, True, False, False])
    write = LocalWriter.write

    def fail(writer: LocalWriter, data: bytes, crc32c: int) -> None:
        if next(full):
            raise DiskFull("the server's disk is full")
        write(writer, data, crc32c)

    monkeypatch.setattr(LocalWriter, "write", fail)

    async def take(writer: LocalWriter) -> None:
        async with WriteBuffer(writer) as intake:
            for byte in b"abcd":
                await intake.write(chunk_of(bytes([byte]) * FLUSH_BYTES))

    with LocalWriter(REF, tmp_path / "file") as writer:
        with pytest.raises(DiskFull):
            await take(writer)
        assert (tmp_path / "file").read_bytes() == b"a" * FLUSH_BYTES


async def test_the_rest_is_written_when_the_stream_fails(tmp_path: Path) -> None:
    async def take(writer: LocalWriter) -> None:
        async with WriteBuffer(writer) as intake:
            await intake.write(chunk_of(b"a" * FLUSH_BYTES))
            await intake.write(chunk_of(b"rest"))
            raise ZeroDivisionError

    with LocalWriter(REF, tmp_path / "file") as writer:
        with pytest.raises(ZeroDivisionError):
            await take(writer)
        assert writer.size_bytes == FLUSH_BYTES + 4


@pytest.mark.parametrize(
    ("uploads", "expected"), [(1, 4 << 20), (2, 4 << 20), (4, 2 << 20), (8, 1 << 20), (512, 1 << 20)]
)
def test_uploads_at_the_same_time_share_the_buffers(uploads: int, expected: int) -> None:
    assert share_of_buffers(uploads) == expected


async def test_no_more_is_buffered_than_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, chunk = threading.Event(), chunk_of(b"a" * (MIN_BUFFERED // 2))
    write = LocalWriter.write
    monkeypatch.setattr(LocalWriter, "write", lambda *args: (may_write.wait(), write(*args)))
    with LocalWriter(REF, tmp_path / "file") as writer:
        async with WriteBuffer(writer, lambda: MIN_BUFFERED) as intake:
            # One is being written, and two may wait for it.
            for _ in range(2):
                await intake.write(chunk)
            third = asyncio.create_task(intake.write(chunk))
            await asyncio.sleep(0.05)
            assert not third.done()
            may_write.set()
            await third
    assert (tmp_path / "file").stat().st_size == 3 * len(chunk.data)
