"""Space for uploads: how many bytes they may have, per user and in total, and how much of the disk they leave free."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from fedround_server.blobs import Blobs, BlobWriter, StagedRef, UploadRef
from fedround_server.domain.errors import DiskFull, Quota, TooManyUploads
from fedround_server.domain.limits import Limits

log = logging.getLogger(__name__)
MIN_COUNTED_BYTES = 1 << 20
"""What an unfinished upload counts at least, in bytes: empty files fill a disk, too."""


class SpaceReservation:
    """Space for one upload in progress."""

    def __init__(
        self, space: "Space", user_id: str, ref: UploadRef | StagedRef, written: int, *, is_update: bool
    ) -> None:
        """Covers nothing yet; so many bytes of the file are written already."""
        self._space = space
        self.user_id = user_id
        self.ref = ref
        self.is_update = is_update
        self.size = 0
        self.is_continued = ref in space.unfinished_of(user_id)
        """Whether an earlier attempt may have left something."""
        self._writer: BlobWriter | None = None
        self._written_before = written

    @property
    def written(self) -> int:
        """Bytes of the file that are on the disk."""
        return self._written_before if self._writer is None else max(self._written_before, self._writer.size_bytes)

    @property
    def to_come(self) -> int:
        """Bytes that are not on the disk yet."""
        return max(0, self.size - self.written)

    def cover(self, size: int) -> None:
        """Extends the reservation to a file of a size, in bytes.

        Raises:
            TooManyUploads: The user's unfinished uploads, or those of all users, have too many bytes.
            Quota: All files together have too many bytes for another model.
            DiskFull: Too little of the disk would stay free.
        """
        if size > self.size:
            self._space.extend(self, size)

    def write_with(self, writer: BlobWriter) -> None:
        """Counts what a writer writes: less is to come then."""
        self._space.start_writing(self)
        self._writer = writer


class Space:
    """The space of unfinished uploads: those in progress, and those that wait for their next attempt."""

    def __init__(self, limits: Limits, blobs: Blobs) -> None:
        """Begins with none; `recover` finds those of an earlier process."""
        self._limits = limits
        self._blobs = blobs
        # Of all reservations, and of those that nothing is written for: a sum over them would take as long as there are
        # uploads, for each upload.
        self._reserved = self._in_memory = 0
        self._writing: set[SpaceReservation] = set()
        self._unfinished: dict[str, dict[UploadRef | StagedRef, int]] = {}
        self._bytes: Counter[str] = Counter()
        self.unfinished_bytes = 0
        """The size of all unfinished uploads, in bytes, as the limits count it."""
        self._is_low = False

    def recover(self) -> None:
        """Counts the resumable uploads that an earlier process left, and looks how much of the disk is free."""
        for ref, size in self._blobs.unfinished_uploads():
            self._count(ref.user_id, ref, size)
        self._warn_if_low(self._blobs.free_bytes(), 0)

    def forget(self, ref: UploadRef) -> None:
        """Stops counting an upload that was removed."""
        self._count(ref.user_id, ref, 0)

    def forget_user(self, user_id: str) -> None:
        """Stops counting the uploads of a user: they were removed."""
        for ref in list(self._unfinished.get(user_id, ())):
            self._count(user_id, ref, 0)

    def unfinished_of(self, user_id: str) -> Collection[UploadRef | StagedRef]:
        """Returns the unfinished uploads of a user."""
        return self._unfinished.get(user_id, ())

    @contextmanager
    def reserve(
        self, user_id: str, ref: UploadRef | StagedRef, offset: int, *, is_update: bool
    ) -> Iterator[SpaceReservation]:
        """Holds space for an upload that goes on at an offset, in bytes, for the duration of the block.

        Updates may use the last of the room: running rounds wait for them.
        """
        reservation = SpaceReservation(self, user_id, ref, offset, is_update=is_update)
        try:
            yield reservation
        finally:
            self._resize(reservation, 0)
            self._writing.discard(reservation)
            self._count(user_id, ref, self._blobs.known_size(ref) if isinstance(ref, UploadRef) else 0)

    def extend(self, reservation: SpaceReservation, size: int) -> None:
        """Extends a reservation to a size if there is room; see `SpaceReservation.cover`."""
        user_id, ref = reservation.user_id, reservation.ref
        counted = max(size, MIN_COUNTED_BYTES)
        more = counted - self._unfinished.get(user_id, {}).get(ref, 0)
        limits = self._limits
        if self._bytes[user_id] + more > limits.max_unfinished_bytes_per_user:
            raise TooManyUploads(
                f"your unfinished uploads would have {self._bytes[user_id] + more} bytes, you may have"
                f" {limits.max_unfinished_bytes_per_user}: finish some first; those that are not continued"
                " are removed after a day",
                limit="max_unfinished_bytes_per_user",
            )
        if self.unfinished_bytes + more > limits.max_unfinished_bytes:
            raise TooManyUploads(
                f"all unfinished uploads would have {self.unfinished_bytes + more} bytes, the server takes"
                f" {limits.max_unfinished_bytes}: try again later",
                limit="max_unfinished_bytes",
            )
        self._check_disk(size, size - reservation.written, reservation.is_update, reservation)
        self._resize(reservation, size)
        self._count(user_id, ref, counted)

    def start_writing(self, reservation: SpaceReservation) -> None:
        """Counts what is written for a reservation from now on."""
        self._in_memory -= reservation.to_come
        self._writing.add(reservation)

    def check_new(self) -> None:
        """Checks that there is room for something new that comes without a file.

        Raises:
            Quota: All files together have too many bytes.
            DiskFull: Too little of the disk is free.
        """
        self._check_disk(0, 0, is_update=False)

    def _check_disk(self, size: int, to_come: int, is_update: bool, own: SpaceReservation | None = None) -> None:
        limits = self._limits
        stored = self._blobs.stored_bytes + size + self._reserved - (own.size if own else 0)
        if not is_update and stored > limits.max_stored_bytes:
            raise Quota(
                f"the server would have files of {stored} bytes, it takes {limits.max_stored_bytes}: remove some first,"
                " or ask the operator for more",
                limit="max_stored_bytes",
            )
        to_come_of_others = self._in_memory + sum(one.to_come for one in self._writing) - (own.to_come if own else 0)
        free = self._blobs.free_bytes() - to_come_of_others
        # Updates may use half of what must stay free otherwise; the rest is for aggregation and the database.
        self._warn_if_low(free, to_come)
        if free - to_come < limits.min_free_bytes // (2 if is_update else 1):
            raise DiskFull(
                "the server's disk is almost full: try again when the operator has made room", limit="min_free_bytes"
            )

    def _warn_if_low(self, free: int, to_come: int) -> None:
        """Tells the operator once that the disk is almost full, until it is not any more."""
        was_low, self._is_low = self._is_low, free - to_come < self._limits.min_free_bytes
        if self._is_low and not was_low:
            log.warning(
                "the disk is almost full: %d bytes are free, %d of them for an upload, and new models leave %d"
                " (min_free_bytes): make room, run `fedround collect`, or lower min_free_bytes",
                free,
                to_come,
                self._limits.min_free_bytes,
            )

    def _resize(self, reservation: SpaceReservation, size: int) -> None:
        before = reservation.to_come
        self._reserved += size - reservation.size
        reservation.size = size
        if reservation not in self._writing:
            self._in_memory += reservation.to_come - before

    def _count(self, user_id: str, ref: UploadRef | StagedRef, size: int) -> None:
        """Counts an upload with so many bytes; 0 stops counting it."""
        of_user = self._unfinished.setdefault(user_id, {})
        before = of_user.pop(ref, 0)
        if size:
            of_user[ref] = max(size, MIN_COUNTED_BYTES)
        change = of_user.get(ref, 0) - before
        self._bytes[user_id] += change
        self.unfinished_bytes += change
        if not of_user:
            del self._unfinished[user_id], self._bytes[user_id]
