"""What every blob store does: whole files by their digest, uploads that are resumed, and results of other processes."""

import hashlib
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

import contracts.buckets  # noqa: F401 - adds places
from contracts.blobs import PLACES, Place, put, put_small
from fedround_server.blobs import BLOCK_BYTES, BlobDamaged, Blobs, FileRef, StagedBlob, StagedRef, UploadRef
from fedround_server.domain.errors import UploadOffset
from fedround_server.domain.model import BlobRef

UPLOAD = UploadRef("user", "upload")
STAGED = StagedRef("one")
Add: TypeAlias = Callable[[Blobs, bytes], BlobRef]
IMPLEMENTATIONS = pytest.mark.parametrize("kind", sorted(PLACES))


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


@pytest.fixture(params=[put, put_small])
def add(request: pytest.FixtureRequest) -> Add:
    """How a blob comes in."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def blobs(place: Place) -> Blobs:
    return place.blobs


def blob_of(data: bytes) -> BlobRef:
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data))


def begin(blobs: Blobs, ref: UploadRef | StagedRef, data: bytes) -> None:
    """Leaves an upload unfinished."""
    with blobs.writer(ref) as writer:
        writer.write(data)


def is_here(blobs: Blobs, ref: FileRef) -> bool:
    try:
        return bool(blobs.files.range(ref, 0, 1))
    except FileNotFoundError:
        return False


def test_a_blob_is_found_by_its_digest(blobs: Blobs) -> None:
    blob = put(blobs, b"hello")
    assert blob == blob_of(b"hello")
    assert blobs.files.local_path(blob).read_bytes() == b"hello"
    assert not is_here(blobs, STAGED)


def test_what_is_not_there_is_not_found(blobs: Blobs) -> None:
    for ref in (blob_of(b"hello"), UPLOAD, STAGED):
        with pytest.raises(FileNotFoundError):
            blobs.files.range(ref, 0, 1)
    with pytest.raises(BlobDamaged, match="is missing"):
        blobs.open(blob_of(b"hello"), 0)
    blobs.remove_upload(UPLOAD)
    blobs.remove_uploads("user")
    assert blobs.collect([blob_of(b"hello").sha256]) == []


def read(blobs: Blobs, blob: BlobRef, offset: int, found: list[bytes] | None = None) -> list[bytes]:
    """What a download from an offset gets, in its chunks; they are also added to `found`."""
    found = [] if found is None else found
    with blobs.open(blob, offset) as file:
        while (chunk := file.read_cached() or file.read()).data:
            assert chunk.crc32c == google_crc32c.value(chunk.data)
            found.append(chunk.data)
    return found


@pytest.mark.parametrize("size", [10, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 7])
def test_a_blob_is_read_in_chunks_from_any_offset(blobs: Blobs, size: int) -> None:
    data = random.Random(size).randbytes(size)
    blob = put(blobs, data)
    assert len(blob.checksums) == 4 * -(-size // BLOCK_BYTES)
    for known in (blob, blob_of(data)):
        for offset in {0, 7, size // 2, size - 1, size}:
            ends = [*range(BLOCK_BYTES * (offset // BLOCK_BYTES + 1), size, BLOCK_BYTES), size]
            starts = [offset, *ends[:-1]]
            assert read(blobs, known, offset) == [data[a:b] for a, b in zip(starts, ends, strict=True) if a < b]


@pytest.mark.parametrize("offset", [0, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 5])
def test_no_damaged_byte_is_read(place: Place, offset: int) -> None:
    blobs = place.blobs
    data = random.Random(1).randbytes(3 * BLOCK_BYTES - 7)
    blob = put(blobs, data)
    place.flip(blob, 2 * BLOCK_BYTES - 1)
    found: list[bytes] = []
    if offset < 2 * BLOCK_BYTES:
        with pytest.raises(BlobDamaged, match=f"is damaged between the bytes {BLOCK_BYTES} and {2 * BLOCK_BYTES}"):
            read(blobs, blob, offset, found)
    else:
        read(blobs, blob, offset, found)
    assert b"".join(found) == data[offset : BLOCK_BYTES if offset < 2 * BLOCK_BYTES else len(data)]
    with pytest.raises(BlobDamaged, match="SHA-256"):
        blobs.examine(blob)


def test_what_is_examined_gets_its_checksums(place: Place) -> None:
    data = random.Random(2).randbytes(BLOCK_BYTES + 1)
    blob = put(place.blobs, data)
    assert place.blobs.examine(blob_of(data)).checksums == blob.checksums
    # Without checksums nothing is verified while it is read.
    place.flip(blob, 5)
    assert b"".join(read(place.blobs, blob_of(data), 0)) != data


@pytest.mark.parametrize(("change", "words"), [("remove", "is missing"), ("cut", "has 4 bytes instead of 5")])
def test_a_blob_of_another_size_is_damaged(place: Place, change: str, words: str) -> None:
    blob = put(place.blobs, b"hello")
    if change == "remove":
        place.remove(blob)
    else:
        place.cut(blob)
    with pytest.raises(BlobDamaged, match=f"the file objects/{blob.sha256[:2]}/{blob.sha256} {words}"):
        place.blobs.open(blob, 0)
    with pytest.raises(BlobDamaged):
        place.blobs.examine(blob)


def test_the_same_bytes_mend_a_damaged_blob(place: Place, add: Add) -> None:
    blob = add(place.blobs, b"hello")
    place.flip(blob, 2)
    assert add(place.blobs, b"hello") == blob
    assert read(place.blobs, blob, 0) == [b"hello"]


def test_the_error_about_a_damaged_blob_is_the_same_in_every_process(blobs: Blobs) -> None:
    with pytest.raises(BlobDamaged) as raised:
        blobs.open(blob_of(b"hello"), 0)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize(("start", "end"), [(0, 5), (1, 3), (2, 2), (3, 100), (5, 9)])
def test_a_range_is_what_lies_between_its_ends(blobs: Blobs, start: int, end: int) -> None:
    blob = put(blobs, b"hello")
    begin(blobs, UPLOAD, b"hello")
    assert blobs.files.range(blob, start, end) == blobs.files.range(UPLOAD, start, end) == b"hello"[start:end]


def test_the_same_bytes_are_one_blob(place: Place, add: Add) -> None:
    blobs, first = place.blobs, put(place.blobs, b"same", UPLOAD)
    place.make_old(first)
    assert add(blobs, b"same") == first
    assert blobs.stored_bytes == 4
    # They count as new: they are not to be collected just now.
    assert blobs.old() == []
    assert blobs.collect([first.sha256]) == []
    assert is_here(blobs, first)


def test_a_staged_upload_that_is_given_up_leaves_nothing(blobs: Blobs) -> None:
    with blobs.writer(STAGED) as writer:
        writer.write(b"half")
        assert is_here(blobs, STAGED)
    assert not is_here(blobs, STAGED)


def test_an_upload_that_is_given_up_can_go_on_unless_it_is_empty_or_discarded(place: Place) -> None:
    blobs = place.blobs
    begin(blobs, UPLOAD, b"half")
    with blobs.writer(UploadRef("user", "empty")):
        pass
    with blobs.writer(UploadRef("user", "discarded")) as writer:
        writer.write(b"wrong")
        writer.discard()
    for store in (blobs, place.open()):
        assert list(store.unfinished_uploads()) == [(UPLOAD, 4)]
        assert store.upload_size(UploadRef("user", "discarded")) == 0
    put(blobs, b"whole", UPLOAD)
    assert list(blobs.unfinished_uploads()) == []


@IMPLEMENTATIONS
@given(data=st.binary(min_size=1, max_size=5000), cuts=st.lists(st.integers(0, 5000), max_size=5))
def test_a_resumed_upload_is_the_file_whatever_the_cuts(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: bytes, cuts: list[int]
) -> None:
    blobs = PLACES[kind](tmp_path_factory.mktemp("blobs")).blobs
    for cut in [*cuts, len(data)]:
        here = blobs.upload_size(UPLOAD)
        # Also further back than it stands.
        offset = min(here, cut)
        with blobs.writer(UPLOAD, offset) as writer:
            seen = bytearray()
            writer.replay(seen.extend)
            assert bytes(seen) == data[:offset]
            writer.write(data[offset : max(offset, cut)])
            staged = writer.staged
    assert staged == StagedBlob(UPLOAD, blob_of(data))
    assert staged.blob.checksums == google_crc32c.value(data).to_bytes(4, "little")
    assert blobs.upload_size(UPLOAD) == len(data)


def test_an_upload_is_not_resumed_behind_its_end(blobs: Blobs) -> None:
    begin(blobs, UPLOAD, b"12345")
    for ref, offset, stands_at in ((UPLOAD, 6, 5), (UploadRef("user", "other"), 1, 0), (STAGED, 1, 0)):
        with pytest.raises(UploadOffset) as raised:
            blobs.writer(ref, offset)
        assert raised.value.metadata["committed_size"] == str(stands_at)


def test_uploads_of_two_users_never_meet(blobs: Blobs) -> None:
    one, two = UploadRef("one", "upload"), UploadRef("two", "upload")
    begin(blobs, one, b"12345")
    assert (blobs.upload_size(one), blobs.upload_size(two)) == (5, 0)
    blobs.remove_uploads("two")
    blobs.remove_upload(two)
    assert blobs.upload_size(one) == 5
    blobs.remove_uploads("one")
    assert blobs.upload_size(one) == 0


def test_a_sweep_removes_what_a_dead_process_left_but_not_what_can_go_on(place: Place) -> None:
    with place.blobs.files.stage() as (left, path):
        path.write_bytes(b"x")
    begin(place.blobs, UPLOAD, b"half")
    blob = put(place.blobs, b"kept")
    blobs = place.open()
    blobs.sweep()
    assert [is_here(blobs, ref) for ref in (left, UPLOAD, blob)] == [False, True, True]


def test_the_result_of_another_process_is_committed(blobs: Blobs) -> None:
    """Engines get at files by what is sent to them, and return references."""
    files = pickle.loads(pickle.dumps(blobs.files))
    model = put(blobs, b"model")
    with files.stage() as (staged, path):
        path.write_bytes(files.local_path(model).read_bytes() + b" and more")
    data = b"model and more"
    assert files.range(staged, 0, 100) == data
    blobs.commit(StagedBlob(staged, blob_of(data)))
    assert blobs.files.local_path(blob_of(data)).read_bytes() == data
    assert not is_here(blobs, staged)


def test_a_staged_file_that_fails_leaves_nothing(blobs: Blobs) -> None:
    names = []

    def fail() -> None:
        with blobs.files.stage() as (staged, path):
            names.append(staged)
            path.write_bytes(b"half")
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    assert names[0] != names[1]
    assert not any(is_here(blobs, name) for name in names)


def test_only_old_files_that_nothing_needs_are_collected(place: Place) -> None:
    blobs = place.blobs
    needed, old, new = (put(blobs, data) for data in (b"needed", b"old", b"new"))
    stale, fresh = UploadRef("user", "stale"), UploadRef("user", "fresh")
    for ref in (stale, fresh):
        begin(blobs, ref, b"half")
    for ref in (needed, old, stale):
        place.make_old(ref)
    assert set(blobs.old()) == {needed.sha256, old.sha256}
    assert blobs.collect([old.sha256, new.sha256]) == [3]
    assert blobs.collect_uploads() == {stale: 4}
    assert [is_here(blobs, blob) for blob in (needed, old, new)] == [True, False, True]
    assert (blobs.upload_size(stale), blobs.upload_size(fresh)) == (0, 4)
    assert blobs.old() == [needed.sha256]


def test_an_old_blob_that_a_row_may_still_refer_to_is_not_collected(place: Place, add: Add) -> None:
    blobs = place.blobs
    undecided = add(blobs, b"undecided")
    place.age(undecided)
    assert blobs.collect([undecided.sha256]) == []
    blobs.keep(undecided)
    # Nor one whose bytes were there before.
    add(blobs, b"undecided")
    place.age(undecided)
    assert blobs.collect([undecided.sha256]) == []
    blobs.keep(undecided)
    assert blobs.collect([undecided.sha256]) == [9]


def test_a_blob_that_no_row_will_refer_to_is_removed(blobs: Blobs, add: Add) -> None:
    refused = add(blobs, b"refused")
    blobs.release(refused)
    assert (is_here(blobs, refused), blobs.stored_bytes) == (False, 0)
    # A second call, or one for another blob, does nothing.
    blobs.release(refused)
    assert blobs.stored_bytes == 0


def test_a_blob_of_several_commits_stays_for_the_one_that_needs_it(blobs: Blobs, add: Add) -> None:
    shared = add(blobs, b"shared")
    for _ in range(2):
        add(blobs, b"shared")
    blobs.release(shared)
    assert is_here(blobs, shared)
    blobs.keep(shared)
    blobs.release(shared)
    assert (is_here(blobs, shared), blobs.stored_bytes) == (True, 6)


def test_the_last_commit_that_is_refused_removes_the_blob(blobs: Blobs, add: Add) -> None:
    for _ in range(3):
        shared = add(blobs, b"shared")
    here = []
    for _ in range(3):
        blobs.release(shared)
        here.append(is_here(blobs, shared))
    assert here == [True, True, False]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_blob_that_was_stored_before_stays(place: Place, restarted: bool, add: Add) -> None:
    needed = add(place.blobs, b"needed")
    place.blobs.keep(needed)
    blobs = place.open() if restarted else place.blobs
    add(blobs, b"needed")
    blobs.release(needed)
    assert is_here(blobs, needed)


def test_what_is_stored_is_counted(place: Place, add: Add) -> None:
    blobs = place.blobs
    old, same = add(blobs, b"old"), add(blobs, b"same")
    assert blobs.stored_bytes == 7
    add(blobs, b"same")
    assert blobs.stored_bytes == 7
    place.make_old(old)
    blobs.collect([old.sha256, same.sha256, "0" * 64])
    assert blobs.stored_bytes == 4
    again = place.open()
    again.measure()
    assert again.stored_bytes == 4
    assert again.free_bytes() > 0
