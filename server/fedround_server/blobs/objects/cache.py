"""Local copies of blobs."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedround_server.host.folder import make_private

GRACE_SECONDS = 600.0
"""For how long a file stays that was asked for: whoever has its path opens it soon."""
TOUCH_SECONDS = 60.0
"""How old the time of the last use may be before it is set anew."""
SHARE = 8
"""The folder is measured again when a process has added this part of the limit to it."""


class Cache:
    """A folder with copies of blobs, which several processes share: objects/AA/SHA256.

    The copies that were not used for the longest time are removed when they take more than the limit; those that were
    used in the last ten minutes stay, so that more may be needed. An open copy can be read after it was removed.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Makes nothing."""
        self._objects = root / "objects"
        self._locks = root / "locks"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._added: int | None = None
        self._size = 0

    @property
    def size_bytes(self) -> int:
        """What the copies take, as far as this process knows."""
        return self._size + (self._added or 0)

    def path(self, sha256: str) -> Path:
        """Returns where the copy of a blob is, or would be."""
        return self._objects / sha256[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        """Returns the copy of a blob, which stays for some minutes; None if there is none."""
        path = self.path(sha256)
        try:
            if path.stat().st_mtime < time.time() - TOUCH_SECONDS:
                os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def add(self, source: Path, sha256: str) -> Path:
        """Makes a file of the same file system the copy of a blob, and returns where it is."""
        path = self.path(sha256)
        make_private(path.parent)
        size = source.stat().st_size
        os.utime(source)
        source.replace(path)
        with self._lock:
            self._added = size + (self._added or 0)
            is_due = not self._size or self._added > self._max_bytes // SHARE
        if is_due:
            self.evict()
        return path

    def drop(self, sha256: str) -> None:
        """Removes the copy of a blob, if there is one."""
        self.path(sha256).unlink(missing_ok=True)

    @contextmanager
    def locked(self, sha256: str) -> Iterator[None]:
        """Lets one thread of all processes at a time fetch a blob."""
        make_private(self._locks)
        descriptor = os.open(self._locks / sha256[:2], os.O_CREAT | os.O_RDWR, 0o600)
        try:
            # On a file system that has no locks, a blob may be fetched twice.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """Removes what can be removed if the block finds the disk full."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.evict(0)
            raise

    def evict(self, max_bytes: int | None = None) -> None:
        """Removes old copies until all of them take less than the limit, or another number of bytes."""
        limit = self._max_bytes if max_bytes is None else max_bytes
        found = sorted(self._copies())
        total = sum(size for _, size, _ in found)
        newest = time.time() - GRACE_SECONDS
        for used, size, path in found:
            if total <= limit or used > newest:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        with self._lock:
            self._size, self._added = total, 0

    def _copies(self) -> Iterator[tuple[float, int, str]]:
        with suppress(FileNotFoundError):
            for folder in os.scandir(self._objects):
                for entry in os.scandir(folder):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        yield status.st_mtime, status.st_size, entry.path
