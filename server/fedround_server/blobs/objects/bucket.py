"""What blobs need of an object store."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class BucketError(Exception):
    """A request has no result: whether it changed anything is not known. Never contains a secret.

    Its text is for the operator.

    Attributes:
        problem: What is wrong, without what users must not know: where the store is.
        is_refusal: Whether the store answered that it does not allow the request.
    """

    def __init__(self, problem: str, *, detail: str = "", is_refusal: bool = False) -> None:
        super().__init__(f"{problem} ({detail})" if detail else problem)
        self.problem = problem
        self.is_refusal = is_refusal


@dataclass(frozen=True, slots=True)
class Entry:
    """An object.

    Attributes:
        key: Its name.
        size_bytes: Its size.
        modified: When it was put, by the clock of the store.
        commit: What it was put with; empty in a listing.
    """

    key: str
    size_bytes: int
    modified: datetime
    commit: str = ""


class Bucket(Protocol):
    """Objects by key. Reads see the last completed write; a listing may be behind. Any thread may call it.

    Each method raises `BucketError` if the store does not answer, or does not allow the request.
    """

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        """Stores an object, durably, whole or not at all.

        Args:
            key: Its name.
            data: Its bytes, at least one.
            create: Replace no object.
            commit: Is stored with it, and returned by `head`.

        Raises:
            FileExistsError: There is one that it would replace.
        """

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Returns the bytes [start, end) of an object, fewer if it ends before.

        Raises:
            FileNotFoundError: There is no such object.
        """

    def head(self, key: str) -> Entry | None:
        """Returns what is known of an object; None if there is none."""

    def page(self, prefix: str, after: str) -> list[Entry]:
        """Returns objects whose keys begin with a prefix that ends with a slash, in the order of their keys.

        Args:
            prefix: The prefix.
            after: The last key of the page before; empty for the first page.

        Returns:
            Up to 1,000 objects; none at the end.
        """

    def delete(self, key: str) -> None:
        """Removes an object, if it exists."""
