"""Room for uploads: what counts, and what is left free."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fedround_server.blobs import StagedRef, UploadRef
from fedround_server.blobs.writer import LocalWriter
from fedround_server.coordinator.uploads.space import MIN_COUNTED_BYTES, Space, SpaceReservation
from fedround_server.domain.errors import DiskFull, Quota, TooManyUploads
from fedround_server.domain.limits import Limits

MIB = 1 << 20
LIMITS = Limits(max_unfinished_bytes_per_user=10 * MIB, max_unfinished_bytes=15 * MIB, min_free_bytes=8 * MIB)
STORED = replace(LIMITS, max_stored_bytes=20 * MIB)


@dataclass
class Disk:
    """As much of a blob store as room is about."""

    free: int = 1 << 40
    left: dict[tuple[str, str], int] = field(default_factory=dict)
    stored_bytes: int = 0

    def free_bytes(self) -> int:
        return self.free

    def known_size(self, ref: UploadRef) -> int:
        return self.left.get((ref.user_id, ref.upload_id), 0)

    def unfinished_uploads(self) -> Iterator[tuple[UploadRef, int]]:
        for (user_id, upload_id), size in self.left.items():
            yield UploadRef(user_id, upload_id), size


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def space(disk: Disk) -> Space:
    return Space(LIMITS, disk)  # type: ignore[arg-type]


def reserve(
    space: Space, user_id: str, name: str, offset: int = 0, **options: Any
) -> AbstractContextManager[SpaceReservation]:
    return space.reserve(user_id, UploadRef(user_id, name), offset, **{"is_update": False, **options})


def test_uploads_under_way_count_with_all_that_they_will_have(space: Space) -> None:
    with reserve(space, "one", "a") as first, reserve(space, "one", "b") as second, reserve(space, "two", "a") as other:
        first.cover(6 * MIB)
        with pytest.raises(TooManyUploads, match=f"would have {11 * MIB} bytes, you may have {10 * MIB}") as error:
            second.cover(5 * MIB)
        assert error.value.metadata == {"limit": "max_unfinished_bytes_per_user"}
        second.cover(4 * MIB)
        with pytest.raises(TooManyUploads, match=f"would have {16 * MIB} bytes, the server takes") as error:
            other.cover(6 * MIB)
        assert error.value.metadata == {"limit": "max_unfinished_bytes"}
        other.cover(5 * MIB)
    with reserve(space, "one", "c") as third:
        third.cover(10 * MIB)


def test_what_waits_for_its_next_try_counts_with_what_is_here(space: Space, disk: Disk) -> None:
    with reserve(space, "one", "a") as first:
        first.cover(10 * MIB)
        disk.left["one", "a"] = 4 * MIB
    with reserve(space, "one", "b") as second:
        with pytest.raises(TooManyUploads):
            second.cover(7 * MIB)
        second.cover(6 * MIB)
    # Its own next try may have all of it.
    with reserve(space, "one", "a", offset=4 * MIB) as again:
        again.cover(10 * MIB)
        del disk.left["one", "a"]
    with reserve(space, "one", "b") as second:
        second.cover(10 * MIB)


def test_what_an_earlier_process_left_counts_until_it_is_removed(space: Space, disk: Disk) -> None:
    disk.left = {("one", "a"): 6 * MIB, ("one", "b"): 2 * MIB, ("two", "a"): MIB}
    space.recover()
    with reserve(space, "one", "c") as third:
        with pytest.raises(TooManyUploads):
            third.cover(4 * MIB)
        space.forget(UploadRef("one", "a"))
        third.cover(8 * MIB)
    space.forget_user("one")
    with reserve(space, "one", "c") as third:
        third.cover(10 * MIB)


def test_a_small_file_counts_like_a_larger_one(space: Space, disk: Disk) -> None:
    disk.left = {("one", str(number)): 1 for number in range(10)}
    space.recover()
    with (
        reserve(space, "one", "a") as one,
        pytest.raises(TooManyUploads, match=f"would have {10 * MIB + MIN_COUNTED_BYTES}"),
    ):
        one.cover(1)


def test_what_is_still_to_come_is_not_free(space: Space, disk: Disk, tmp_path: Path) -> None:
    disk.free = 12 * MIB
    with reserve(space, "one", "a") as first, reserve(space, "two", "a") as second:
        first.cover(3 * MIB)
        with pytest.raises(DiskFull, match="almost full"):
            second.cover(MIB + 1)
        second.cover(MIB)
        # What has arrived is not to come any more, and it is not free either.
        with LocalWriter(StagedRef("file"), tmp_path / "file") as writer:
            first.write_with(writer)
            writer.write(bytes(3 * MIB))
        disk.free = 9 * MIB
        with pytest.raises(DiskFull):
            second.cover(MIB + 1)
        disk.free = 10 * MIB
        second.cover(2 * MIB)
    # Nothing is left of uploads that have ended, wherever their bytes were.
    with reserve(space, "one", "c") as third:
        with pytest.raises(DiskFull):
            third.cover(2 * MIB + 1)
        third.cover(2 * MIB)
    disk.free = 9 * MIB
    with reserve(space, "one", "b", offset=5 * MIB) as resumed:
        resumed.cover(6 * MIB)


def test_the_operator_is_told_once_that_the_disk_is_almost_full(
    space: Space, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return caplog.text.count("the disk is almost full: ")

    disk.free = 8 * MIB - 1
    space.recover()
    assert told() == 1
    for free, count in ((8 * MIB - 1, 1), (100 * MIB, 1), (8 * MIB - 1, 2)):
        disk.free = free
        with reserve(space, "one", "a", is_update=True) as update:
            update.cover(1)
        assert told() == count


def test_updates_may_use_half_of_what_else_stays_free(space: Space, disk: Disk) -> None:
    disk.free = 8 * MIB
    with reserve(space, "one", "a") as model, reserve(space, "two", "a", is_update=True) as update:
        with pytest.raises(DiskFull):
            model.cover(1)
        with pytest.raises(DiskFull):
            update.cover(4 * MIB + 1)
        update.cover(4 * MIB)


def test_all_files_have_so_many_bytes_and_running_rounds_go_on(disk: Disk) -> None:
    space = Space(STORED, disk)  # type: ignore[arg-type]
    disk.stored_bytes = 15 * MIB
    with reserve(space, "one", "a") as first, reserve(space, "two", "a") as second:
        first.cover(3 * MIB)
        with pytest.raises(Quota, match=f"files of {20 * MIB + 1} bytes, it takes {20 * MIB}") as error:
            second.cover(2 * MIB + 1)
        assert error.value.metadata == {"limit": "max_stored_bytes"}
        second.cover(2 * MIB)
    with reserve(space, "one", "a", is_update=True) as update:
        update.cover(6 * MIB)
        with pytest.raises(Quota):
            space.check_new()
    space.check_new()


def test_something_new_without_a_file_leaves_the_disk_free_as_well(space: Space, disk: Disk) -> None:
    disk.free = 8 * MIB
    space.check_new()
    with reserve(space, "two", "a", is_update=True) as update:
        update.cover(1)
        with pytest.raises(DiskFull):
            space.check_new()
