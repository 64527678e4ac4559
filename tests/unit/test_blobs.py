"""Blobs in a local folder: what is on disk when, and what happens when the disk fails."""

import errno
import hashlib
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts.blobs import put
from fedround_server.blobs import BLOCK_BYTES, UNREFERENCED_SECONDS, StagedRef, UploadRef
from fedround_server.blobs.local import LocalBlobs
from fedround_server.blobs.writer import LocalWriter
from fedround_server.domain.errors import DiskFull
from fedround_server.domain.model import BlobRef

UPLOAD, STALE = UploadRef("user", "upload"), UploadRef("user", "stale")


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_blob_is_found_by_its_digest_and_is_read_only(blobs: LocalBlobs, tmp_path: Path) -> None:
    blob = put(blobs, b"hello")
    assert blob == BlobRef(hashlib.sha256(b"hello").hexdigest(), 5)
    path = blobs.files.local_path(blob)
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert files(tmp_path) == [f"objects/{blob.sha256[:2]}/{blob.sha256}"]
    with blobs.open(blob, 2) as file:
        assert file.read().data == b"llo"


@pytest.mark.parametrize("cached", [True, False])
def test_a_blob_is_read_in_chunks_whether_or_not_the_system_has_it_in_memory(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    data = bytes(range(256)) * (10 * BLOCK_BYTES // 256)
    blob = put(blobs, data)
    if not cached:
        monkeypatch.setattr("fedround_server.blobs.reader.RWF_NOWAIT", None)
    for offset in (0, 7, len(data)):
        found = []
        with blobs.open(blob, offset) as file:
            # What was written just now is in memory, except on a file system that does not report it.
            while (chunk := file.read_cached() or file.read()).data:
                found.append(chunk.data)
        assert b"".join(found) == data[offset:]
        assert all(len(chunk) == BLOCK_BYTES for chunk in found[1:])


@pytest.fixture
def syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is forced to disk, in order."""
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        sync(descriptor)
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))

    monkeypatch.setattr(os, "fsync", note)
    return synced


def test_folders_are_on_disk_before_blobs_are_in_them(tmp_path: Path, syncs: list[str]) -> None:
    blobs = LocalBlobs(tmp_path)
    blob = put(blobs, b"hello")
    folder = f"objects/{blob.sha256[:2]}"
    assert syncs == [".", "tmp/one", "objects", folder]
    put(blobs, b"hello")
    assert syncs[4:] == ["tmp/one", folder]
    # The next process cannot know whether this one was killed between the folder and its sync.
    put(LocalBlobs(tmp_path), b"hello")
    assert syncs[6:] == [".", "tmp/one", "objects", folder]


def test_a_folder_that_could_not_be_synced_is_synced_again(
    tmp_path: Path, syncs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, sync = LocalBlobs(tmp_path), os.fsync

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "objects":
            raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk fails"):
        put(blobs, b"hello")
    monkeypatch.setattr(os, "fsync", sync)
    put(blobs, b"hello")
    assert "objects" in syncs


def test_a_file_that_could_not_be_synced_is_written_again(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    with blobs.writer(UploadRef("user", "one")) as writer:
        writer.write(b"hello")
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="the disk fails"):
            writer.sync()
    assert blobs.upload_size(UploadRef("user", "one")) == 0


def test_an_adoption_that_is_cut_off_leaves_the_upload_writable(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise OSError("no rename")

    with blobs.writer(UPLOAD) as writer:
        writer.write(b"whole")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", cut_off)
            with pytest.raises(OSError, match="no rename"):
                blobs.commit(writer.staged)
    assert stat.S_IMODE((tmp_path / "uploads/user/upload").stat().st_mode) == 0o600


class ReportingLock:
    """A lock that reports when a caller has to wait for it."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._report("waits")
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_bytes_that_come_again_are_not_collected(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = put(blobs, b"again")
    blobs.keep(blob)
    make_old(blobs.files.local_path(blob))
    reported: queue.Queue[str] = queue.Queue()
    unlink = Path.unlink

    def come_again() -> None:
        put(blobs, b"again", StagedRef("two"))
        reported.put("came")

    def late_unlink(path: Path, **options: bool) -> None:
        if path == blobs.files.local_path(blob):
            again.start()
            reported.get(timeout=30)
        unlink(path, **options)

    again = threading.Thread(target=come_again)
    monkeypatch.setattr(blobs, "_lock", ReportingLock(reported.put), raising=False)
    monkeypatch.setattr(Path, "unlink", late_unlink)
    blobs.collect([blob.sha256])
    again.join()
    assert blobs.files.local_path(blob).read_bytes() == b"again"


def test_what_goes_meanwhile_does_not_stop_the_collection(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterdir = Path.iterdir

    def with_ghosts(folder: Path) -> Iterator[Path]:
        yield folder / "ghost"
        yield from iterdir(folder)

    blob = put(blobs, b"old")
    blobs.keep(blob)
    with blobs.writer(STALE) as writer:
        writer.write(b"half")
    for path in (blobs.files.local_path(blob), tmp_path / "uploads/user/stale"):
        make_old(path)
    monkeypatch.setattr(Path, "iterdir", with_ghosts)
    assert blobs.old() == [blob.sha256]
    assert blobs.collect(["0" * 64, blob.sha256]) == [3]
    blobs.collect_uploads()
    assert blobs.upload_size(STALE) == 0


def test_what_cannot_be_removed_stays_alone(
    blobs: LocalBlobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Neither is ours, and neither can be listed or removed like a file.
    (tmp_path / "objects/stray").touch()
    (tmp_path / "uploads/user/folder").mkdir(parents=True)
    make_old(tmp_path / "uploads/user/folder")
    with blobs.writer(STALE) as writer:
        writer.write(b"half")
    make_old(tmp_path / "uploads/user/stale")
    assert blobs.old() == []
    blobs.collect_uploads()
    assert blobs.upload_size(STALE) == 0
    assert [name in caplog.text for name in ("objects/stray", "uploads/user/folder")] == [True, True]


def make_old(path: Path) -> None:
    long_ago = time.time() - UNREFERENCED_SECONDS - 60
    os.utime(path, (long_ago, long_ago))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_in_a_chunk_keeps_what_came_before_it(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 6:
            raise OSError(code, "full")
        return write(descriptor, data[:3])

    with blobs.writer(UPLOAD) as writer:
        writer.write(b"before")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(DiskFull):
                writer.write(b"a chunk")
        assert (blobs.upload_size(UPLOAD), writer.size_bytes) == (6, 6)
        writer.write(b", after")
        assert writer.staged.blob == BlobRef(hashlib.sha256(b"before, after").hexdigest(), 13)
    with blobs.writer(UPLOAD, 6) as writer:
        writer.replay(lambda _: None)
        assert writer.staged.blob == BlobRef(hashlib.sha256(b"before").hexdigest(), 6)


def test_an_upload_that_cannot_be_synced_is_not_gone_on_with(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with blobs.writer(UPLOAD) as writer:
        writer.write(b"whole")
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(DiskFull):
            writer.sync()
    assert blobs.upload_size(UPLOAD) == 0


def test_a_full_disk_takes_as_much_as_fits(small_disk: Path) -> None:
    blobs = LocalBlobs(small_disk)
    chunk = os.urandom(1 << 20)

    def fill(writer: LocalWriter) -> None:
        while True:
            writer.write(chunk)

    with blobs.writer(UPLOAD) as writer, pytest.raises(DiskFull):
        fill(writer)
    here = blobs.upload_size(UPLOAD)
    assert here == writer.size_bytes > 0
    assert here % len(chunk) == 0
    with blobs.writer(UPLOAD, here) as writer:
        writer.replay(lambda _: None)
        assert writer.staged.blob == BlobRef(hashlib.sha256(chunk * (here >> 20)).hexdigest(), here)
