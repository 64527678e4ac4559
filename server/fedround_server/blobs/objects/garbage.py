"""Finds what nothing in a bucket needs any more, by listings that may be behind."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from uuid import uuid4

from fedround_server.blobs.objects.bucket import Entry
from fedround_server.blobs.objects.layout import (
    MARKER,
    OBJECTS,
    PARTS,
    REMOVING,
    STAGED,
    UPLOADS,
    Part,
    decode,
    digest_of,
    list_key,
    marker_key,
    upload_key,
    upload_of,
)
from fedround_server.blobs.objects.patient import PatientBucket
from fedround_server.blobs.protocol import UNREFERENCED_SECONDS
from fedround_server.blobs.refs import UploadRef

CLOCK = "clock/"
PARTS_INTERVAL = 6 * 3600.0
"""Seconds between two collections of parts: for each larger blob two objects are read."""


class Garbage:
    """What may be removed. That an object is missing in a listing is never a reason to remove another one."""

    def __init__(self, bucket: PatientBucket) -> None:
        """Uses a bucket."""
        self._bucket = bucket
        self._parts_time: float | None = None

    def now(self, seconds: float = 0.0) -> datetime:
        """Returns the time of so many seconds ago, by the clock of the store."""
        key = f"{CLOCK}{uuid4()}"
        self._bucket.put(key, b"now")
        found = self._bucket.head(key)
        self._bucket.delete(key)
        if found is None:
            raise OSError("the object store does not return what was just written")
        return found.modified - timedelta(seconds=seconds)

    def old_blobs(self, min_seconds: float) -> list[str]:
        """Returns the digests of blobs that are old enough to be collected."""
        latest = self.now(min_seconds)
        found = {digest_of(one.key) for one in self._bucket.entries(OBJECTS) if one.modified < latest}
        return sorted(digest for digest in found if digest is not None)

    def old_uploads(self) -> Iterator[UploadRef]:
        """Yields uploads that were not continued for a day."""
        latest = self.now(UNREFERENCED_SECONDS)
        for entry in self._bucket.entries(UPLOADS):
            if entry.modified < latest and (ref := upload_of(entry.key)) is not None:
                # The listing may be behind.
                found = self._bucket.head(entry.key)
                if found is not None and found.modified < latest:
                    yield ref

    def size_of_parts(self) -> int:
        """Returns the size of all parts of attempts that have become blobs, in bytes."""
        size = 0
        for _, entries in self._groups():
            parts = list(entries)
            if any(entry.key.endswith(MARKER) for entry in parts):
                size += sum(entry.size_bytes for entry in parts if not entry.key.endswith(MARKER))
        return size

    def collect_parts(self) -> None:
        """Removes parts of attempts that have become no blob, or one that was removed or stored again since.

        Parts are needed as long as the record of their upload names them, or the list of the blob that they became.
        """
        now = time.monotonic()
        if self._parts_time is not None and now - self._parts_time < PARTS_INTERVAL:
            return
        self._parts_time = now
        latest = self.now(UNREFERENCED_SECONDS)
        for prefix in (REMOVING, CLOCK):
            for entry in self._bucket.entries(prefix):
                if entry.modified < latest:
                    self._bucket.delete(entry.key)
        for group, entries in self._groups():
            parts = list(entries)
            if all(entry.modified < latest for entry in parts) and not self._is_needed(group):
                self._remove(group, parts)

    def _groups(self) -> Iterator[tuple[str, Iterator[Entry]]]:
        """Yields the objects of each attempt; a listing is in the order of keys."""
        return groupby(self._bucket.entries(PARTS), lambda entry: Part(entry.key, 0).group)

    def _is_needed(self, group: str) -> bool:
        # In this order: an upload is removed after its parts were marked, and the list of its blob put.
        ref = upload_of(group)
        if ref is None:
            return True
        if ref.user_id != STAGED and self._names(upload_key(ref), group):
            return True
        try:
            marked = self._bucket.get(marker_key(group))
        except FileNotFoundError:
            return False
        return self._names(list_key(marked.decode()), group)

    def _names(self, key: str, group: str) -> bool:
        """Returns whether a list of parts names one of a group; also if it cannot be read."""
        try:
            return any(part.group == group for part in decode(self._bucket.get(key)))
        except FileNotFoundError:
            return False
        except ValueError:
            return True

    def _remove(self, group: str, entries: list[Entry]) -> None:
        marker = marker_key(group)
        for entry in entries:
            if entry.key != marker:
                self._bucket.delete(entry.key)
        # Last: what is left after an interruption is found again.
        self._bucket.delete(marker)
