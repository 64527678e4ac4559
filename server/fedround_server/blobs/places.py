"""Places of files that carry an id, as `domain.place` describes it: a folder, or a prefix of a bucket."""

import uuid
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from fedround_server.blobs.local import LocalBlobs, files_below
from fedround_server.blobs.objects.blobs import ObjectBlobs
from fedround_server.blobs.objects.layout import OBJECTS
from fedround_server.domain.model import BlobRef
from fedround_server.domain.place import NAME, Place
from fedround_server.host.secret_file import keep_first, write_secret

SAMPLE = 100
"""How many files of the target of a copy are looked for in its source."""


class FolderPlace:
    """The folder of the objects of a data directory, or what it links to, which the id is beside."""

    former_id = ""

    def __init__(self, data_dir: Path, blobs: LocalBlobs, *, is_known: bool = False) -> None:
        """Looks at nothing yet."""
        self.name = str(data_dir / "objects")
        self.is_known = is_known
        self._path = (data_dir / "objects").resolve().parent / NAME
        self._blobs = blobs

    def ids(self) -> Sequence[str]:
        """Returns the lines of the file."""
        try:
            return self._path.read_text(encoding="ascii", errors="replace").split()
        except FileNotFoundError:
            return []

    def create(self, place_id: str) -> str:
        """Creates the file, unless there is one."""
        return _first(self.name, keep_first(self._path, place_id).split())

    def replace(self, ids: Sequence[str]) -> None:
        """Writes the file."""
        write_secret(self._path, "\n".join(ids))

    def example(self) -> str | None:
        """Returns the path of a file."""
        return next(map(str, files_below(self._blobs.files.objects)), None)

    def stored(self) -> Iterator[BlobRef]:
        """Yields the files below the folder."""
        return (BlobRef(path.name, path.stat().st_size) for path in files_below(self._blobs.files.objects))

    def has(self, blob: BlobRef) -> bool:
        """Returns whether a file exists, or is made anew from the journal."""
        path = self._blobs.files.local_path(blob)
        return blob.sha256 in self._journaled or (path.is_file() and path.stat().st_size == blob.size_bytes)

    @cached_property
    def _journaled(self) -> frozenset[str]:
        return frozenset(self._blobs.unsettled())


class BucketPlace:
    """A prefix of a bucket."""

    def __init__(self, url: str, blobs: ObjectBlobs, *, is_known: bool = False) -> None:
        """Looks at nothing yet."""
        self.name = url
        # Endpoints are not compared: one store may have several.
        self.former_id = str(uuid.uuid5(uuid.NAMESPACE_URL, url.rstrip("/")))
        self.is_known = is_known
        self._bucket = blobs.files.bucket
        self._blobs = blobs

    def ids(self) -> Sequence[str]:
        """Returns the lines of the object."""
        try:
            return self._bucket.get(NAME).decode("ascii", errors="replace").split()
        except FileNotFoundError:
            return []

    def create(self, place_id: str) -> str:
        """Puts the object, unless there is one."""
        try:
            self._bucket.put(NAME, f"{place_id}\n".encode(), create=True, commit=str(uuid.uuid4()))
        except FileExistsError:
            return _first(self.name, self.ids())
        return place_id

    def replace(self, ids: Sequence[str]) -> None:
        """Puts the object."""
        self._bucket.put(NAME, "".join(f"{one}\n" for one in ids).encode())

    def example(self) -> str | None:
        """Returns the URL of an object."""
        found = next(iter(self._bucket.entries(OBJECTS)), None)
        return None if found is None else f"{self.name}/{found.key}"

    def stored(self) -> Iterator[BlobRef]:
        """Yields the files that a listing has."""
        return self._blobs.stored()

    def has(self, blob: BlobRef) -> bool:
        """Returns whether an object exists, or the list of its parts."""
        return self._blobs.has(blob)


def _first(name: str, ids: Sequence[str]) -> str:
    if not ids:
        raise RuntimeError(f"the {NAME} of {name} is empty: write the id of the place into it, or remove it")
    return ids[0]


def moved_ids(source: Place, target: Place) -> Sequence[str]:
    """Returns what the target of a copy is to store once it has all files of the source.

    Raises:
        RuntimeError: The target belongs to another database.
    """
    here, there = source.ids(), target.ids()
    if here and here[0] in there:
        return there
    if there and there[0] not in here:
        raise RuntimeError(
            f"{target.name} has the files of another database: its {NAME} is {there[0]}: choose another place"
        )
    # A server of an earlier version stored no id. What an interrupted copy has left is in the source, too.
    if not there and not all(map(source.has, islice(target.stored(), SAMPLE))):
        raise RuntimeError(f"{target.name} has files that {source.name} does not have: choose another place")
    here = here or [source.create(source.former_id or str(uuid.uuid4()))]
    return [str(uuid.uuid4()), *here]
