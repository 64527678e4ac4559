"""What every blob store does with small files: they are stored together, and survive a crash of the machine."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import contracts.buckets  # noqa: F401 - adds places
from contracts.blobs import PLACES, Place, put_small, small
from fedround_server.blobs import Blobs
from fedround_server.domain.model import BlobRef


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


@pytest.fixture
def blobs(place: Place) -> Blobs:
    return place.blobs


def read(blobs: Blobs, blob: BlobRef) -> bytes | None:
    try:
        return blobs.files.range(blob, 0, blob.size_bytes)
    except FileNotFoundError:
        return None


def test_small_files_are_stored_together(blobs: Blobs) -> None:
    contents = [b"one", b"two" * 1000, b"", b"one", bytes(1 << 20)]
    assert blobs.store([small(data) for data in contents]) == [None] * 5
    for data in contents:
        assert blobs.files.local_path(small(data).blob).read_bytes() == data
    assert blobs.stored_bytes == len(b"".join(contents)) - 3
    assert blobs.store([]) == []
    # Two of them are the same, and each may be refused.
    here = []
    for _ in range(2):
        blobs.release(small(b"one").blob)
        here.append(read(blobs, small(b"one").blob))
    assert here == [b"one", None]


def test_threads_may_store_the_same_small_files_at_once(blobs: Blobs) -> None:
    files = [small(random.Random(number % 10).randbytes(1000)) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda start: tuple(blobs.store(files[start:])), range(40))) == {
            (None,) * count for count in range(1, 41)
        }
    assert blobs.stored_bytes == 10_000
    assert all(blobs.files.local_path(file.blob).read_bytes() == file.data for file in files)


@pytest.mark.parametrize("place", ["local"], indirect=True)
@pytest.mark.parametrize("change", ["remove", "cut", "flip", None])
@pytest.mark.parametrize("is_needed", [True, False])
def test_small_files_that_a_crash_took_are_recovered_if_they_are_needed(
    place: Place, change: str | None, is_needed: bool
) -> None:
    files = [small(data) for data in (b"first", b"second")]
    place.blobs.store(files)
    lost = files[0].blob
    if change == "flip":
        place.flip(lost, 0)
    elif change is not None:
        getattr(place, change)(lost)
    blobs = place.open()
    assert blobs.unsettled() == {file.blob.sha256 for file in files}
    needed = {file.blob.sha256 for file in files if is_needed}
    assert blobs.recover(needed) == (is_needed and change is not None)
    blobs.measure()
    if is_needed or change is None:
        assert [read(blobs, file.blob) for file in files] == [b"first", b"second"]
    else:
        # What nothing needs and is damaged is gone, and what is whole is left to the collection.
        assert [read(blobs, file.blob) for file in files] == [None, b"second"]
    assert blobs.unsettled() == place.open().unsettled() == set()


def test_a_store_that_is_closed_leaves_nothing_to_recover(place: Place) -> None:
    stored = put_small(place.blobs, b"stored")
    place.blobs.close()
    assert place.open().unsettled() == set()
    # Later ones are stored one by one.
    put_small(place.blobs, b"late")
    assert place.open().unsettled() == set()
    assert read(place.blobs, stored) == b"stored"
