"""Which place of files a database takes for its own, and which one it is refused: the files are another database's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from contracts.blobs import small
from contracts.buckets import CACHE_BYTES, new_memory, opener_of
from fedround_server.blobs.local import LocalBlobs
from fedround_server.blobs.objects import ObjectBlobs
from fedround_server.blobs.places import BucketPlace, FolderPlace, moved_ids
from fedround_server.domain import place as places
from fedround_server.domain.place import Place
from fedround_server.store import Store
from fedround_server.store.verbs.place import PlaceClaim

FILES = [small(bytes([number])) for number in range(1, 5)]
NEEDED = [(file.blob.sha256, file.blob.size_bytes) for file in FILES]
Make = Callable[..., Place]


def choose_id(place: Place, remembered: str, needed: Callable[[], Sequence[tuple[str, int]]]) -> str:
    return places.choose_id(place, remembered, needed, str(uuid4()))


def folder(at: Path, files: int = 0) -> FolderPlace:
    """A folder with so many files."""
    blobs = LocalBlobs(at / str(uuid4()), is_shared=True)
    blobs.store(FILES[:files])
    return FolderPlace(blobs.files.objects.parent, blobs)


def bucket(at: Path, files: int = 0, *, is_known: bool = False) -> BucketPlace:
    """A bucket with so many files."""
    blobs = ObjectBlobs(at / str(uuid4()), opener_of(new_memory()), CACHE_BYTES)
    blobs.store(FILES[:files])
    return BucketPlace(f"s3://one/{uuid4()}", blobs, is_known=is_known)


def take(place: Place, remembered: str, needed: Sequence[tuple[str, int]] = ()) -> str:
    """Lets a database take a place; returns the id that it then remembers."""
    chosen = choose_id(place, remembered, lambda: needed)
    assert place.create(chosen) == chosen
    return chosen


@pytest.fixture(params=[folder, bucket])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return lambda *args: request.param(tmp_path, *args)


def test_a_new_database_takes_a_place_without_files(make: Make) -> None:
    place = make()
    first = take(place, "")
    assert place.ids() == [first]
    assert take(place, first, NEEDED) == first
    assert place.create("another") == first


def test_a_start_that_was_interrupted_is_repeated(make: Make) -> None:
    # The database remembers the id, and the place does not have it.
    for files, needed in ((0, []), (4, NEEDED)):
        place = make(files)
        remembered = choose_id(place, "", lambda needed=needed: needed)
        assert place.ids() == []
        assert [take(place, remembered, needed)] == place.ids()


def test_a_place_of_another_database_is_refused(make: Make) -> None:
    place = make(4)
    first = take(place, "", NEEDED)
    other = take(make(), "")
    for needed in ([], NEEDED):
        with pytest.raises(RuntimeError, match=f"{place.name} has the files of another .* {first}, .* is {other}"):
            choose_id(place, other, lambda needed=needed: needed)
    with pytest.raises(RuntimeError, match=f"the database refers to no files, but {place.name} was used"):
        choose_id(place, "", list)
    # One that was taken a moment ago has no files yet.
    with pytest.raises(RuntimeError, match=r"was used, and has files\.id"):
        choose_id(make_taken(make), "", list)
    with pytest.raises(RuntimeError, match="of 1 that were looked for, it has 0"):
        choose_id(place, "", lambda: [("0" * 64, 1)])
    assert place.ids() == [first]


def make_taken(make: Make) -> Place:
    place = make()
    take(place, "")
    return place


def test_a_place_without_an_id_is_taken_by_its_files(make: Make) -> None:
    with pytest.raises(RuntimeError, match=r"of 4 that were looked for, it has 1\. They are in the place .* is before"):
        choose_id(make(1), "before", lambda: NEEDED)
    with pytest.raises(RuntimeError, match="refers to no files"):
        choose_id(make(1), "before", list)
    # Some may be lost.
    place = make(3)
    assert take(place, "before", NEEDED) not in ("", "before")
    # It is another one than that of before, also for servers that know the other one.
    with pytest.raises(RuntimeError, match="another database"):
        choose_id(place, "before", lambda: NEEDED)


def test_a_database_that_knows_no_place_finds_its_files(make: Make) -> None:
    place = make(4)
    first = take(place, "", NEEDED)
    # For example one from a dump of an earlier version.
    assert take(place, "", NEEDED) == first


def test_a_bucket_of_an_earlier_version_stays_that_of_its_database(tmp_path: Path) -> None:
    place = bucket(tmp_path, 1)
    assert take(place, place.former_id) == place.former_id
    assert place.ids() == [place.former_id]
    # Of SQLite, only the data directory knew.
    place = bucket(tmp_path, 1, is_known=True)
    assert take(place, "") == place.ids()[0]
    # That of another database, also of an earlier version.
    with pytest.raises(RuntimeError, match="refers to no files"):
        choose_id(bucket(tmp_path, 1), bucket(tmp_path).former_id, list)


def test_a_move_carries_the_id_and_the_former_place_is_refused(tmp_path: Path) -> None:
    here, there = folder(tmp_path, 4), bucket(tmp_path)
    first = take(here, "", NEEDED)
    before = first
    for source, target in ((here, there), (there, here), (here, there)):
        ids = moved_ids(source, target)
        target.replace(ids)
        # An attempt that is repeated.
        assert moved_ids(source, target) == ids
        now = take(target, before)
        assert now not in (before, first)
        with pytest.raises(RuntimeError, match="has the files of another database"):
            choose_id(source, now, lambda: NEEDED)
        before = now
    # A dump from before the moves.
    assert take(there, first) == before


def test_files_are_not_moved_into_the_place_of_another_database(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"has the files of another database: its files\.id is"):
        moved_ids(make(4), make_taken(lambda: bucket(tmp_path)))


def test_a_move_of_a_place_of_an_earlier_version(tmp_path: Path) -> None:
    target, source = folder(tmp_path), bucket(tmp_path, 4)
    target.replace(moved_ids(source, target))
    now = take(target, source.former_id)
    with pytest.raises(RuntimeError, match="has the files of another database"):
        choose_id(source, now, lambda: NEEDED)


def test_files_are_not_moved_to_those_of_a_server_that_stored_no_id(make: Make) -> None:
    source, target = make(2), make(4)
    with pytest.raises(RuntimeError, match=f"{target.name} has files that {source.name} does not have"):
        moved_ids(source, target)
    assert source.ids() == target.ids() == []
    # An interrupted copy is repeated.
    assert moved_ids(target, source)[1:] == target.ids()


def test_a_copy_that_lacks_files_is_refused(make: Make) -> None:
    source, target = make(4), make()
    remembered = take(source, "", NEEDED)
    target.replace(moved_ids(source, target))
    with pytest.raises(RuntimeError, match="of 4 that were looked for, it has 0"):
        choose_id(target, remembered, lambda: NEEDED)
    assert choose_id(target, remembered, list) == target.ids()[0]


def test_a_bucket_that_an_earlier_version_used_again_is_taken_by_its_files(tmp_path: Path) -> None:
    place = bucket(tmp_path, 4)
    first = take(place, "", NEEDED)
    assert choose_id(place, place.former_id, lambda: NEEDED) == first


def test_an_empty_id_is_told_or_replaced(tmp_path: Path) -> None:
    place: Place = bucket(tmp_path)
    place.replace([])
    with pytest.raises(RuntimeError, match=r"the files\.id of .* is empty"):
        place.create(str(uuid4()))
    # A crash may have left an empty file.
    place = folder(tmp_path)
    place.replace([])
    assert place.create("new") == "new"


def test_an_id_that_an_interrupted_start_had_put_late_is_kept(make: Make, tmp_path: Path) -> None:
    place = make()
    with Store(tmp_path / "fedround.db") as store:
        database = store._database
        claim = PlaceClaim(place)

        def take() -> str:
            claim.take(database._transactions.begin)
            return claim.files_id()

        first = database._executor.submit(take).result()
        # As another start that had looked before the id was there.
        looks, late = [0], place.ids

        def ids() -> Sequence[str]:
            looks[0] += 1
            return [] if looks[0] == 1 else late()

        place.ids = ids  # type: ignore[method-assign]
        assert database._executor.submit(take).result() == first == late()[0]
