"""Removes blobs that other servers may be storing again at the same time.

An object store has no removal on a condition, so that one between the check of a blob and its removal would lose what
another server has stored meanwhile. Whoever removes a blob first puts an object that says so, and then looks whether it
may; whoever finds a blob that it stores puts it again, and then looks whether it is being removed. At least one of them
sees the other: the remover leaves a blob that was put again, or the other waits for the removal, and puts it once more.
A blob that was not there is not being removed: there is one remover at a time, whose request is not repeated.
"""

import logging
import time
from collections.abc import Callable
from uuid import uuid4

from fedround_server.blobs.objects.bucket import Entry
from fedround_server.blobs.objects.layout import LIST, decode, removing_key, size_of
from fedround_server.blobs.objects.patient import PatientBucket

log = logging.getLogger(__name__)
BEGIN_SECONDS = 20.0
"""How long after it said so a removal may begin; its request then takes 30 seconds at most."""
REMOVAL_SECONDS = 60.0
"""How long a removal is waited for; what says so was left by a server that ended then."""
POLL_SECONDS = 0.2


class Removals:
    """Puts and removes the objects of blobs. The caller has a lock on the blob within its process."""

    def __init__(
        self,
        bucket: PatientBucket,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Uses a bucket."""
        self._bucket = bucket
        self._sleep = sleep
        self._clock = clock

    def put(self, sha256: str, key: str, data: bytes, commit: str) -> bool:
        """Puts the object of a blob; returns whether there was none."""
        try:
            self._bucket.put(key, data, create=True, commit=commit)
        except FileExistsError:
            # It counts as new, and a damaged one is mended.
            self._bucket.put(key, data, commit=commit)
            while self._wait(sha256):
                self._bucket.put(key, data, commit=commit)
            return False
        return True

    def remove(self, sha256: str, key: str, allowed: Callable[[Entry], bool]) -> int | None:
        """Removes the object of a blob if that is allowed.

        Args:
            sha256: The blob.
            key: The object: of the blob, or of the list of its parts.
            allowed: Returns whether to remove what is there.

        Returns:
            The size of the blob in bytes; None if it was not removed.

        Raises:
            ObjectsUnavailable: It may be removed or not.
        """
        found = self._bucket.head(key)
        if found is None or not allowed(found):
            return None
        begun, mark, own = self._clock(), removing_key(sha256), uuid4().hex
        try:
            self._bucket.put(mark, b"removing", create=True, commit=own)
        except FileExistsError:
            return None
        found = self._bucket.head(key)
        size = None
        if found is not None and allowed(found):
            size = self._size(found)
            if self._clock() - begun > BEGIN_SECONDS:
                size = None
            else:
                # If it fails, the mark stays: the removal may still happen.
                self._bucket.delete_once(key)
        self._bucket.delete(mark)
        return size

    def _size(self, entry: Entry) -> int:
        if not entry.key.endswith(LIST):
            return entry.size_bytes
        try:
            return size_of(decode(self._bucket.get(entry.key)))
        except (ValueError, FileNotFoundError):
            return 0

    def _wait(self, sha256: str) -> bool:
        """Waits while a blob is being removed; returns whether it was."""
        mark = removing_key(sha256)
        begun = self._clock()
        found = first = self._bucket.head(mark)
        while found is not None:
            if self._clock() - begun > REMOVAL_SECONDS:
                if first is not None and found.commit == first.commit:
                    log.warning("the removal of %s was interrupted: it is stored again", sha256)
                    self._bucket.delete(mark)
                    break
                begun, first = self._clock(), found
            self._sleep(POLL_SECONDS)
            found = self._bucket.head(mark)
        return first is not None
