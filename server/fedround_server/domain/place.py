"""Where the files of a database are, and how it recognizes that place: in another one's, it would collect the files.

The object, or the file, `files.id` has the id of its place in its first line. The other lines are the ids of the places
that `fedround objects copy` has filled it from: a database that had its files there may go on here.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from fedround_server.domain.model import BlobRef

NAME = "files.id"


class Place(Protocol):
    """Where the files of a database are: a folder, or a prefix of a bucket.

    Attributes:
        name: What operators call it.
        former_id: The id by which versions that stored none here knew it; empty if they stored one.
        is_known: Whether the data directory of this server says that its files are here.
    """

    name: str
    former_id: str
    is_known: bool

    def ids(self) -> Sequence[str]:
        """Returns the id, and those of the places that it was filled from; nothing if it has none."""

    def create(self, place_id: str) -> str:
        """Stores an id, durably, if the place has none; returns the one that it has then."""

    def replace(self, ids: Sequence[str]) -> None:
        """Stores the id and those of the places that it was filled from, durably, while no server uses the place."""

    def example(self) -> str | None:
        """Returns the name of a file in it; None if it has none."""

    def stored(self) -> Iterator[BlobRef]:
        """Yields the files in it."""

    def has(self, blob: BlobRef) -> bool:
        """Returns whether it has a file with its size."""


def known_id(place: Place) -> str:
    """Returns the id of a place, or the one by which earlier versions knew it."""
    return next(iter(place.ids()), place.former_id)


def choose_id(place: Place, remembered: str, sample: Callable[[], Sequence[tuple[str, int]]], new_id: str) -> str:
    """Returns the id of the place of a database, which the place may not have yet.

    A place that a database does not remember becomes its own if no other database has taken it, and if it has most of
    some files that the database needs, or none at all while the database needs none.

    Args:
        place: The place.
        remembered: The id of the place where the database has its files; empty if it does not know.
        sample: Returns digests and sizes of some files that the database needs.
        new_id: The id of a place that has none.

    Raises:
        RuntimeError: The place belongs to another database, or does not have the files.
    """
    ids = place.ids()
    if remembered and remembered == (ids[0] if ids else place.former_id):
        return remembered
    has_moved = remembered in ids
    # A server of an earlier version has let the database remember the former id.
    if remembered and ids and not has_moved and remembered != place.former_id:
        raise RuntimeError(
            f"{place.name} has the files of another database: its {NAME} is {ids[0]}, and the files of this database"
            f" are in the place whose {NAME} is {remembered}. Set --objects or --data-dir to that place, or --database"
            " to the other database; docs/replicas.md says how files are moved"
        )
    needed = sample()
    found = sum(place.has(BlobRef(sha256, size_bytes)) for sha256, size_bytes in needed)
    known = f" They are in the place whose {NAME} is {remembered}." if remembered else ""
    if not place.is_known or remembered:
        # A copy has all files, as long as nothing was stored since.
        if found < (len(needed) if has_moved else len(needed) / 2):
            raise RuntimeError(
                f"{place.name} does not have the files of this database: of {len(needed)} that were looked for, it has"
                f" {found}.{known} Set --objects or --data-dir to the place that has them; docs/replicas.md says how"
                " files are moved"
            )
        if not needed and not has_moved and (ids or place.example()):
            used = place.example() or f"{NAME} with {ids[0]}"
            raise RuntimeError(
                f"the database refers to no files, but {place.name} was used, and has {used}.{known} Choose another"
                " place with --objects or --data-dir, or set --database to the one that the server used;"
                f" docs/objects.md describes {NAME}"
            )
    return ids[0] if ids else new_id
