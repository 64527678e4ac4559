"""Files on disk: whole or not there, by their digest, and resumable."""

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
from hypothesis import given
from hypothesis import strategies as st

from fedround_server.blobs import UNREFERENCED_SECONDS, BlobStore, BlobWriter
from fedround_server.domain.errors import DiskFull, UploadOffset
from fedround_server.domain.model import BlobRef


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def put(blobs: BlobStore, data: bytes, name: str = "one") -> BlobRef:
    with blobs.upload("user", None, 0, name) as writer:
        writer.write(data)
        writer.sync()
        blobs.adopt(writer.path, writer.blob)
        return writer.blob


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_blob_is_found_by_its_digest_and_nobody_writes_to_it(blobs: BlobStore, tmp_path: Path) -> None:
    blob = put(blobs, b"hello")
    assert blob == BlobRef(hashlib.sha256(b"hello").hexdigest(), 5)
    path = blobs.path(blob.sha256)
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert files(tmp_path) == [f"objects/{blob.sha256[:2]}/{blob.sha256}"]
    with blobs.open(blob.sha256, 2, 100) as file:
        assert file.read() == b"llo"


@pytest.mark.parametrize("cached", [True, False])
def test_a_blob_is_read_in_chunks_whether_or_not_the_system_has_it_in_memory(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    data = bytes(range(256)) * 10
    blob = put(blobs, data)
    if not cached:
        monkeypatch.setattr("fedround_server.blobs.RWF_NOWAIT", None)
    for offset in (0, 7, len(data)):
        found = []
        with blobs.open(blob.sha256, offset, 1000) as file:
            # What was written just now is in memory, except on a file system that cannot tell.
            while chunk := file.read_cached() or file.read():
                found.append(chunk)
        assert b"".join(found) == data[offset:]
        assert all(len(chunk) == 1000 for chunk in found[:-1])


def test_the_same_bytes_are_one_blob(blobs: BlobStore, tmp_path: Path) -> None:
    first = put(blobs, b"same", "one")
    os.utime(blobs.path(first.sha256), (0, 0))
    assert put(blobs, b"same", "two") == first
    assert len(files(tmp_path)) == 1
    # Touched: it is not to be collected just now.
    assert blobs.path(first.sha256).stat().st_mtime > time.time() - 60


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
    blobs = BlobStore(tmp_path)
    blob = put(blobs, b"hello")
    folder = f"objects/{blob.sha256[:2]}"
    assert syncs == [".", "tmp/one", "objects", folder]
    put(blobs, b"hello")
    assert syncs[4:] == ["tmp/one", folder]
    # The next process cannot know whether this one was killed between the folder and its sync.
    put(BlobStore(tmp_path), b"hello")
    assert syncs[6:] == [".", "tmp/one", "objects", folder]


def test_a_folder_that_could_not_be_synced_is_synced_again(
    tmp_path: Path, syncs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, sync = BlobStore(tmp_path), os.fsync

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "objects":
            raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk fails"):
        put(blobs, b"hello")
    monkeypatch.setattr(os, "fsync", sync)
    put(blobs, b"hello")
    assert "objects" in syncs


def test_a_file_that_could_not_be_synced_is_written_again(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    with blobs.upload("user", "one", 0, "") as writer:
        writer.write(b"hello")
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="the disk fails"):
            writer.sync()
    assert blobs.upload_size("user", "one") == 0


def test_an_adoption_that_is_cut_off_leaves_the_upload_writable(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise OSError("no rename")

    with blobs.upload("user", "upload", 0, "") as writer:
        writer.write(b"whole")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut_off)
            with pytest.raises(OSError, match="no rename"):
                blobs.adopt(writer.path, writer.blob)
    assert stat.S_IMODE((tmp_path / "uploads/user/upload").stat().st_mode) == 0o600


def test_an_upload_that_is_given_up_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    with blobs.upload("user", None, 0, "one") as writer:
        writer.write(b"half")
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []


@given(st.binary(min_size=1, max_size=5000), st.lists(st.integers(0, 5000), max_size=5))
def test_a_resumed_upload_is_the_file_whatever_the_cuts(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    blobs = BlobStore(tmp_path_factory.mktemp("blobs"))
    for cut in [*cuts, len(data)]:
        here = blobs.upload_size("user", "upload")
        # Also further back than it stands.
        offset = min(here, cut)
        with blobs.upload("user", "upload", offset, "") as writer:
            seen = bytearray()
            writer.replay(seen.extend)
            assert bytes(seen) == data[:offset]
            writer.write(data[offset : max(offset, cut)])
            blob = writer.blob
    assert blob == BlobRef(hashlib.sha256(data).hexdigest(), len(data))
    assert blobs.upload_size("user", "upload") == len(data)


def test_an_upload_is_not_resumed_behind_its_end(blobs: BlobStore) -> None:
    with blobs.upload("user", "upload", 0, "") as writer:
        writer.write(b"12345")
    for upload_id, offset, stands_at in (("upload", 6, 5), ("other", 1, 0), (None, 1, 0)):
        with pytest.raises(UploadOffset) as refusal:
            blobs.upload("user", upload_id, offset, "")
        assert refusal.value.metadata["committed_size"] == str(stands_at)


def test_uploads_of_two_users_never_meet(blobs: BlobStore) -> None:
    with blobs.upload("one", "upload", 0, "") as writer:
        writer.write(b"12345")
    assert (blobs.upload_size("one", "upload"), blobs.upload_size("two", "upload")) == (5, 0)
    blobs.forget_user("two")
    assert blobs.upload_size("one", "upload") == 5
    blobs.forget_user("one")
    assert blobs.upload_size("one", "upload") == 0


def test_a_discarded_upload_begins_anew(blobs: BlobStore) -> None:
    with blobs.upload("user", "upload", 0, "") as writer:
        writer.write(b"wrong")
        writer.discard()
    assert blobs.upload_size("user", "upload") == 0


def test_a_sweep_removes_what_a_dead_process_left_but_not_what_can_go_on(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.temporary("left").write_bytes(b"x")
    with blobs.upload("user", "upload", 0, "") as writer:
        writer.write(b"half")
    blob = put(blobs, b"kept")
    blobs.sweep()
    assert files(tmp_path) == [f"objects/{blob.sha256[:2]}/{blob.sha256}", "uploads/user/upload"]


class TellingLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._tell("waits")
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_bytes_that_come_again_are_not_collected(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = put(blobs, b"again")
    make_old(blobs.path(blob.sha256))
    told: queue.Queue[str] = queue.Queue()
    unlink = Path.unlink

    def come_again() -> None:
        put(blobs, b"again", "two")
        told.put("came")

    def late_unlink(path: Path, **options: bool) -> None:
        if path == blobs.path(blob.sha256):
            again.start()
            told.get(timeout=30)
        unlink(path, **options)

    again = threading.Thread(target=come_again)
    monkeypatch.setattr(blobs, "_lock", TellingLock(told.put), raising=False)
    monkeypatch.setattr(Path, "unlink", late_unlink)
    blobs.collect([blob.sha256])
    again.join()
    assert blobs.path(blob.sha256).read_bytes() == b"again"


def test_what_goes_meanwhile_does_not_stop_the_collection(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterdir = Path.iterdir

    def with_ghosts(folder: Path) -> Iterator[Path]:
        yield folder / "ghost"
        yield from iterdir(folder)

    blob = put(blobs, b"old")
    with blobs.upload("user", "stale", 0, "") as writer:
        writer.write(b"half")
    for path in (blobs.path(blob.sha256), tmp_path / "uploads/user/stale"):
        make_old(path)
    monkeypatch.setattr(Path, "iterdir", with_ghosts)
    assert blobs.old() == [blob.sha256]
    assert blobs.collect(["0" * 64, blob.sha256]) == 1
    blobs.collect_uploads()
    assert blobs.upload_size("user", "stale") == 0


def test_what_cannot_be_removed_stays_alone(blobs: BlobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Neither is ours, and neither can be listed or removed like a file.
    (tmp_path / "objects/stray").touch()
    (tmp_path / "uploads/user/folder").mkdir(parents=True)
    make_old(tmp_path / "uploads/user/folder")
    with blobs.upload("user", "stale", 0, "") as writer:
        writer.write(b"half")
    make_old(tmp_path / "uploads/user/stale")
    assert blobs.old() == []
    blobs.collect_uploads()
    assert blobs.upload_size("user", "stale") == 0
    assert [name in caplog.text for name in ("objects/stray", "uploads/user/folder")] == [True, True]


def make_old(path: Path) -> None:
    long_ago = time.time() - UNREFERENCED_SECONDS - 60
    os.utime(path, (long_ago, long_ago))


def test_only_old_files_that_nothing_needs_are_collected(blobs: BlobStore, tmp_path: Path) -> None:
    needed, old, new = (put(blobs, data) for data in (b"needed", b"old", b"new"))
    for name in ("stale", "fresh"):
        with blobs.upload("user", name, 0, "") as writer:
            writer.write(b"half")
    for path in (blobs.path(needed.sha256), blobs.path(old.sha256), tmp_path / "uploads/user/stale"):
        make_old(path)
    assert set(blobs.old()) == {needed.sha256, old.sha256}
    assert blobs.collect([old.sha256, new.sha256]) == 1
    blobs.collect_uploads()
    assert [blobs.path(blob.sha256).exists() for blob in (needed, old, new)] == [True, False, True]
    assert (blobs.upload_size("user", "stale"), blobs.upload_size("user", "fresh")) == (0, 4)
    assert blobs.old() == [needed.sha256]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_in_a_chunk_keeps_what_came_before_it(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 6:
            raise OSError(code, "full")
        return write(descriptor, data[:3])

    with blobs.upload("user", "upload", 0, "") as writer:
        writer.write(b"before")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(DiskFull):
                writer.write(b"a chunk")
        assert (blobs.upload_size("user", "upload"), writer.size_bytes) == (6, 6)
        writer.write(b", after")
        assert writer.blob == BlobRef(hashlib.sha256(b"before, after").hexdigest(), 13)
    with blobs.upload("user", "upload", 6, "") as writer:
        writer.replay(lambda _: None)
        assert writer.blob == BlobRef(hashlib.sha256(b"before").hexdigest(), 6)


def test_an_upload_that_cannot_be_synced_is_not_gone_on_with(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with blobs.upload("user", "upload", 0, "") as writer:
        writer.write(b"whole")
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(DiskFull):
            writer.sync()
    assert blobs.upload_size("user", "upload") == 0


def test_a_full_disk_takes_as_much_as_fits(small_disk: Path) -> None:
    blobs = BlobStore(small_disk)
    chunk = os.urandom(1 << 20)

    def fill(writer: BlobWriter) -> None:
        while True:
            writer.write(chunk)

    with blobs.upload("user", "upload", 0, "") as writer, pytest.raises(DiskFull):
        fill(writer)
    here = blobs.upload_size("user", "upload")
    assert here == writer.size_bytes > 0
    assert here % len(chunk) == 0
    with blobs.upload("user", "upload", here, "") as writer:
        writer.replay(lambda _: None)
        assert writer.blob == BlobRef(hashlib.sha256(chunk * (here >> 20)).hexdigest(), here)


def test_what_is_stored_is_counted(blobs: BlobStore, tmp_path: Path) -> None:
    old, same = put(blobs, b"old"), put(blobs, b"same")
    assert blobs.stored_bytes == 7
    put(blobs, b"same", "two")
    assert blobs.stored_bytes == 7
    make_old(blobs.path(old.sha256))
    blobs.collect([old.sha256, same.sha256, "0" * 64])
    assert blobs.stored_bytes == 4
    again = BlobStore(tmp_path)
    again.measure()
    assert again.stored_bytes == 4
