"""Room for uploads: how many bytes they may take, per user and in all, and how much of the disk they leave."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fedround_server.blobs import BlobStore, BlobWriter
from fedround_server.domain.errors import DiskFull, Quota, TooManyUploads
from fedround_server.domain.limits import Limits

LEAST = 1 << 20
"""What an unfinished upload counts at least, in bytes: empty files fill a disk, too."""


class Claim:
    """Room for one upload under way."""

    def __init__(self, space: "Space", user_id: str, name: str, written: int, *, is_update: bool) -> None:
        """Covers nothing yet.

        Args:
            space: Where the room is.
            user_id: Whose upload it is.
            name: Its name among the user's uploads.
            written: How much of the file is here.
            is_update: Whether it is an update, which a running round waits for.
        """
        self._space = space
        self.user_id = user_id
        self.name = name
        self.is_update = is_update
        self.size = 0
        self.writer: BlobWriter | None = None
        self._found = written

    @property
    def written(self) -> int:
        """Bytes of the file that are on the disk."""
        return self._found if self.writer is None else max(self._found, self.writer.size_bytes)

    @property
    def to_come(self) -> int:
        """Bytes that are not on the disk yet."""
        return max(0, self.size - self.written)

    def cover(self, size: int) -> None:
        """Makes sure that there is room for a file of a size.

        Raises:
            TooManyUploads: The user's unfinished uploads, or those of all, have too many bytes.
            Quota: All files together have too many bytes for another model.
            DiskFull: Too little of the disk would stay free.
        """
        if size > self.size:
            self._space.check(self, size)
            self.size = size


class Space:
    """The room that uploads take until they are finished: those under way, and those that wait for their next try."""

    def __init__(self, limits: Limits, blobs: BlobStore) -> None:
        """Begins with none; `recover` finds those of an earlier process."""
        self._limits = limits
        self._blobs = blobs
        self._claims: set[Claim] = set()
        self._unfinished: dict[str, dict[str, int]] = {}
        self._bytes: Counter[str] = Counter()

    def recover(self) -> None:
        """Counts the resumable uploads that an earlier process left."""
        for user_id, upload_id, size in self._blobs.unfinished():
            self._count(user_id, upload_id, size)

    def forget(self, user_id: str, upload_id: str | None = None) -> None:
        """Counts an upload (by default all) of a user no more: its file was removed."""
        for name in list(self._unfinished.get(user_id, ())) if upload_id is None else [upload_id]:
            self._count(user_id, name, 0)

    @contextmanager
    def claim(self, user_id: str, upload_id: str | None, name: str, offset: int, *, is_update: bool) -> Iterator[Claim]:
        """Holds room for an upload for the time of the block.

        Args:
            user_id: Whose upload it is.
            upload_id: What makes it resumable.
            name: A name for an upload without an id.
            offset: Where it goes on, in bytes.
            is_update: Whether it is an update: running rounds go on while there is any room.
        """
        claim = Claim(self, user_id, upload_id or name, offset, is_update=is_update)
        self._claims.add(claim)
        try:
            yield claim
        finally:
            self._claims.remove(claim)
            left = self._blobs.upload_size(user_id, upload_id) if upload_id else 0
            self._count(user_id, claim.name, left)

    def check(self, claim: Claim, size: int) -> None:
        """Lets a claim grow to a size if there is room; see `Claim.cover`."""
        counted = max(size, LEAST)
        more = counted - self._unfinished.get(claim.user_id, {}).get(claim.name, 0)
        limits = self._limits
        if self._bytes[claim.user_id] + more > limits.max_unfinished_bytes_per_user:
            raise TooManyUploads(
                f"your unfinished uploads would have {self._bytes[claim.user_id] + more} bytes, you may have"
                f" {limits.max_unfinished_bytes_per_user}: finish some first; those that nobody goes on with"
                " are removed after a day",
                limit="max_unfinished_bytes_per_user",
            )
        if self._bytes.total() + more > limits.max_unfinished_bytes:
            raise TooManyUploads(
                f"all unfinished uploads would have {self._bytes.total() + more} bytes, the server takes"
                f" {limits.max_unfinished_bytes}: try again later",
                limit="max_unfinished_bytes",
            )
        self._check_kept(size, size - claim.written, claim.is_update, claim)
        self._count(claim.user_id, claim.name, counted)

    def check_new(self) -> None:
        """Makes sure that there is room for something new, which brings no file with it.

        Raises:
            Quota: All files together have too many bytes.
            DiskFull: Too little of the disk is free.
        """
        self._check_kept(0, 0, is_update=False)

    def _check_kept(self, size: int, to_come: int, is_update: bool, claim: Claim | None = None) -> None:
        others = [other for other in self._claims if other is not claim]
        limits = self._limits
        stored = self._blobs.stored_bytes + size + sum(other.size for other in others)
        if not is_update and stored > limits.max_stored_bytes:
            raise Quota(
                f"the server would have files of {stored} bytes, it takes {limits.max_stored_bytes}: remove some first,"
                " or ask the operator for more",
                limit="max_stored_bytes",
            )
        free = self._blobs.free_bytes() - sum(other.to_come for other in others)
        # Updates may use half of what else stays free; the rest is for aggregation and the database.
        if free - to_come < limits.min_free_bytes // (2 if is_update else 1):
            raise DiskFull(
                "the server's disk is almost full: try again when the operator has made room", limit="min_free_bytes"
            )

    def _count(self, user_id: str, name: str, size: int) -> None:
        """Counts an upload with so many bytes, or with 0 no more."""
        of_user = self._unfinished.setdefault(user_id, {})
        before = of_user.pop(name, 0)
        if size:
            of_user[name] = max(size, LEAST)
        self._bytes[user_id] += of_user.get(name, 0) - before
        if not of_user:
            del self._unfinished[user_id], self._bytes[user_id]
