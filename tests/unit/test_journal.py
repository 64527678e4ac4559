"""The journal of small files: what is synced when, what becomes of its segments, and what happens when a call fails."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts.blobs import put_small, small
from fedround_server import failpoints
from fedround_server.blobs import journal, local
from fedround_server.blobs.local import LocalBlobs
from fedround_server.blobs.segment import BLOCK_BYTES, HEADER, Segment, group_bytes, read_entries
from fedround_server.domain.errors import DiskFull
from fedround_server.host import sync

FILES = [small(bytes([number]) * 1000 * (number + 1)) for number in range(5)]


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[LocalBlobs]:
    blobs = LocalBlobs(tmp_path)
    yield blobs
    blobs.close()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is forced to disk, in order: folders and files by their names, data of segments, and the file system."""
    noted: list[str] = []

    def note(name: str, function: Callable[[int], object]) -> Callable[[int], object]:
        def call(descriptor: int) -> object:
            noted.append(name.format(Path(f"/proc/self/fd/{descriptor}").readlink().name))
            return function(descriptor)

        return call

    monkeypatch.setattr(os, "fsync", note("{}", os.fsync))
    monkeypatch.setattr(os, "fdatasync", note("segment", os.fdatasync))
    for module in (journal, local):
        monkeypatch.setattr(module, "sync_file_system", note("file system", sync.sync_file_system))
    return noted


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "journal").iterdir())


def failure(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def retire(blobs: LocalBlobs) -> None:
    """Gives up the segment in use, as after a while without a new file."""
    held = blobs._journal
    with held._changed:
        if held._current is not None:
            held._retire(held._current)
    held.settle()


def test_a_group_takes_one_sync(blobs: LocalBlobs, tmp_path: Path, calls: list[str]) -> None:
    assert blobs.store(FILES) == [None] * 5
    assert calls == ["journal", "segment"]
    assert blobs.store(FILES) == [None] * 5
    assert calls == ["journal", "segment", "segment"]
    (path,) = segments(tmp_path)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]
    assert list(read_entries(path)) == [*FILES, *FILES]
    for file in FILES:
        assert stat.S_IMODE(blobs.files.local_path(file.blob).stat().st_mode) == 0o400
    assert list((tmp_path / "tmp").iterdir()) == []


def test_callers_that_wait_for_a_sync_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment(tmp_path / "one")
    ends = [segment.append([file]) for file in FILES]
    assert all(end % BLOCK_BYTES == 0 for end in ends)
    segment.sync(ends[2])
    monkeypatch.setattr(os, "fdatasync", failure(errno.EIO))
    segment.sync(ends[4])
    later = segment.append(FILES)
    for _ in range(2):
        with pytest.raises(OSError, match=r"Input/output error|could not be written"):
            segment.sync(later)
    segment.sync(ends[4])
    segment.close()


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 1, 3000])
def test_a_segment_ends_before_a_torn_entry(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "one"
    segment = Segment(path)
    segment.append(FILES[:2])
    end = segment.append(FILES[2:])
    segment.close()
    os.truncate(path, end - (-sum(HEADER.size + len(file.data) for file in FILES[2:]) % BLOCK_BYTES) - cut)
    assert list(read_entries(path)) == FILES[:4]
    path.write_bytes(bytes(end))
    assert list(read_entries(path)) == []


def test_what_is_left_of_an_earlier_use_does_not_hide_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "one"
    segment = Segment(path)
    segment.append(FILES)
    segment.rewind()
    segment.append(FILES[4:])
    segment.append(FILES[3:4])
    segment.close()
    assert list(read_entries(path))[:2] == [FILES[4], FILES[3]]
    assert path.stat().st_size == group_bytes(FILES)


def test_writes_that_stop_half_way_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda file, pieces, at: write(file, [pieces[0][:700]], at))
    segment = Segment(tmp_path / "one")
    segment.append(FILES)
    segment.close()
    assert list(read_entries(tmp_path / "one")) == FILES


def test_a_segment_is_used_again_once_its_files_are_on_disk(
    blobs: LocalBlobs, tmp_path: Path, calls: list[str]
) -> None:
    blobs.store(FILES)
    before = segments(tmp_path)
    retire(blobs)
    assert calls == ["journal", "segment", "file system"]
    blobs.store(FILES[:1])
    assert segments(tmp_path) == before
    assert next(read_entries(before[0])) == FILES[0]
    # Nothing of it is needed any more.
    retire(blobs)
    retire(blobs)
    assert calls[3:] == ["segment", "file system"]


def test_a_segment_is_given_up_after_a_while_without_new_files(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()
    monkeypatch.setattr(journal, "IDLE_SECONDS", 0.01)
    failpoints.listen(lambda name: given_up.set() if name == "journal.settled" else None)
    try:
        blobs.store(FILES)
        assert given_up.wait(60)
    finally:
        failpoints.listen(None)


def test_no_segment_is_given_up_before_its_files_are_made(blobs: LocalBlobs, calls: list[str]) -> None:
    with blobs._journal.holding(FILES):
        retire(blobs)
        assert calls == ["journal", "segment"]
    retire(blobs)
    assert calls == ["journal", "segment", "file system"]


def test_files_are_written_anew_if_the_file_system_could_not_be_synced(
    blobs: LocalBlobs, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.store(FILES)
    removed, kept = FILES[0].blob, FILES[1].blob
    blobs.release(removed)
    before = blobs.files.local_path(kept).stat().st_ino
    monkeypatch.setattr(journal, "sync_file_system", lambda descriptor: False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failure(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            retire(blobs)
    # It could not be given up, and is kept for the next attempt.
    assert list(read_entries(segments(tmp_path)[0])) == FILES
    calls.clear()
    blobs._journal.settle()
    assert blobs.files.local_path(kept).stat().st_ino != before
    assert blobs.files.local_path(kept).read_bytes() == FILES[1].data
    assert not blobs.files.local_path(removed).exists()
    assert {file.blob.sha256[:2] for file in FILES[1:]} <= set(calls)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_sync_of_the_file_system_that_fails_concerns_the_segment_in_use_too(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [blobs.files.local_path(file.blob) for file in FILES]

    def age() -> None:
        for path in paths:
            os.utime(path, (0, 0))

    def anew() -> list[bool]:
        return [path.stat().st_mtime > 0 for path in paths]

    # The system reports an error once, whichever file it concerns.
    answers = iter([False, True, True])
    monkeypatch.setattr(journal, "sync_file_system", lambda descriptor: next(answers))
    blobs.store(FILES[:1])
    with blobs._journal.holding(FILES[:1]):
        retire(blobs)
        blobs.store(FILES[1:])
        age()
    blobs._journal.settle()
    assert anew() == [True, False, False, False, False]
    retire(blobs)
    assert anew() == [True] * 5
    # Later ones were written after the error.
    blobs.store(FILES)
    age()
    retire(blobs)
    assert anew() == [False] * 5


def test_a_journal_that_is_full_is_no_reason_to_wait(
    blobs: LocalBlobs, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", group_bytes(FILES[4:]))
    # The background has no time yet.
    with blobs._journal._one_at_a_time:
        assert blobs.store(FILES[3:]) == [None, None]
        assert calls == ["journal", "segment", "journal", "segment"]
        calls.clear()
        assert blobs.store(FILES[2:3]) == [None]
        folder = FILES[2].blob.sha256[:2]
        assert calls[-2:] == ["objects", folder]
        assert "segment" not in calls
    assert len(segments(tmp_path)) == journal.MAX_SEGMENTS


def test_a_disk_that_is_almost_full_has_no_journal(
    blobs: LocalBlobs, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_small(blobs, b"before")
    monkeypatch.setattr(journal, "MIN_FREE_BYTES", 1 << 62)
    calls.clear()
    assert blobs.store(FILES) == [None] * 5
    assert "segment" not in calls
    assert {file.blob.sha256[:2] for file in FILES} <= set(calls)
    blobs._journal.settle()
    assert segments(tmp_path) == []


def test_temporary_data_have_no_journal(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "_is_needed", False)
    blobs = LocalBlobs(tmp_path)
    assert blobs.store(FILES) == [None] * 5
    assert (segments(tmp_path), calls) == ([], [])


def test_a_sync_that_fails_is_the_error_of_all(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_small(blobs, b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failure(errno.EIO))
        errors = blobs.store(FILES)
    assert [str(error) for error in errors] == ["[Errno 5] Input/output error"] * 5
    assert blobs.stored_bytes == 6
    assert not any(blobs.files.local_path(file.blob).exists() for file in FILES)
    # What was synced before stays valid, and what comes next goes elsewhere.
    assert next(read_entries(segments(tmp_path)[0])).data == b"before"
    assert blobs.store(FILES) == [None] * 5
    assert blobs._journal._current is not None
    assert list(read_entries(blobs._journal._current.path)) == FILES


def test_a_journal_that_could_not_be_written_is_used_again(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failure(errno.EIO))
        for _ in range(3):
            assert [str(error) for error in blobs.store(FILES[:1])] == ["[Errno 5] Input/output error"]
    assert segments(tmp_path) == []
    assert blobs.store(FILES) == [None] * 5
    assert list(read_entries(segments(tmp_path)[0])) == FILES


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
def test_a_journal_without_room_does_not_stop_files_that_have_some(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, call, failure(errno.EDQUOT))
    assert blobs.store(FILES) == [None] * 5
    assert blobs.stored_bytes == sum(len(file.data) for file in FILES)


def test_a_file_without_room_is_refused_alone(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) == len(FILES[1].data):
            return write(descriptor, data[:10])
        if len(data) == len(FILES[1].data) - 10:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    errors = blobs.store(FILES)
    assert [type(error) for error in errors] == [type(None), DiskFull, type(None), type(None), type(None)]
    assert not blobs.files.local_path(FILES[1].blob).exists()
    assert blobs.stored_bytes == sum(len(file.data) for file in FILES) - len(FILES[1].data)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_disk_takes_the_small_files_that_fit(small_disk: Path) -> None:
    blobs = LocalBlobs(small_disk)
    errors = blobs.store([small(os.urandom(1 << 20)) for _ in range(40)])
    stored = errors.count(None)
    assert 20 < stored <= 32
    assert {type(error) for error in errors[stored:]} == {DiskFull}
    assert blobs.stored_bytes == stored << 20
    assert segments(small_disk) == list((small_disk / "tmp").iterdir()) == []


def test_what_cannot_be_recovered_stays_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalBlobs(tmp_path).store(FILES)
    blobs = LocalBlobs(tmp_path)
    for file in FILES:
        blobs.files.local_path(file.blob).unlink()
    needed = blobs.unsettled()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failure(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            blobs.recover(needed)
    assert blobs.recover(blobs.unsettled()) == 5
    assert segments(tmp_path) == []


def test_recovery_reads_files_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalBlobs(tmp_path).store(FILES)
    blobs = LocalBlobs(tmp_path)
    # What memory shows of it never got to the disk.
    lost = blobs.files.local_path(FILES[2].blob)

    def drop(path: Path) -> None:
        if path == lost:
            lost.chmod(0o600)
            lost.write_bytes(bytes(len(FILES[2].data)))

    monkeypatch.setattr(local, "drop_cached_pages", drop)
    assert blobs.recover(blobs.unsettled()) == 1
    assert lost.read_bytes() == FILES[2].data


def test_recovery_makes_files_anew_that_the_disk_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalBlobs(tmp_path).store(FILES)
    blobs, read = LocalBlobs(tmp_path), Path.read_bytes
    unreadable = [blobs.files.local_path(file.blob) for file in FILES[:2]]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: failure(errno.EIO)() if path in unreadable else read(path))
        needed = blobs.unsettled() - {FILES[1].blob.sha256}
        assert blobs.recover(needed) == 1
    assert unreadable[0].read_bytes() == FILES[0].data
    assert not unreadable[1].exists()


def test_recovery_forces_files_to_disk_before_it_removes_the_journal(tmp_path: Path, calls: list[str]) -> None:
    LocalBlobs(tmp_path).store(FILES)
    calls.clear()
    blobs = LocalBlobs(tmp_path)
    assert blobs.recover(blobs.unsettled()) == 0
    assert calls == [tmp_path.name, "file system"]
