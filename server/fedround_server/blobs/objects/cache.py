"""Local copies of blobs."""

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedround_server.blobs.checksums import BlobDamaged
from fedround_server.blobs.reader import LocalReader
from fedround_server.domain.model import BlobRef
from fedround_server.host.folder import make_private

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
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
        self._root = root
        self._objects = root / "objects"
        self._locks = root / "locks"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # When the folder was measured last, and added since.
        self._measured: int | None = None
        self._added = 0

    @property
    def size_bytes(self) -> int:
        """What the copies take, as far as this process knows."""
        return (self._measured or 0) + self._added

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
            self._added += size
            is_due = self._measured is None or self._added > self._max_bytes // SHARE
        if is_due:
            self.evict()
        return path

    def begin(self) -> None:
        """Removes the copies of before the machine was started: they may not have been on disk then."""
        stamp = self._root / "boot"
        boot = _boot()
        if not boot or not stamp.exists() or stamp.read_text() != boot:
            shutil.rmtree(self._objects, ignore_errors=True)
            make_private(self._root)
            stamp.write_text(boot)
        self.evict()

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
            self._measured, self._added = total, 0

    def _copies(self) -> Iterator[tuple[float, int, str]]:
        with suppress(FileNotFoundError):
            for folder in os.scandir(self._objects):
                for entry in os.scandir(folder):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        yield status.st_mtime, status.st_size, entry.path


class CachedReader(LocalReader):
    """A copy that is being sent. One that is found to be damaged is removed, so that the blob is fetched anew."""

    def __init__(self, cache: Cache, path: Path, blob: BlobRef, offset: int) -> None:
        """Opens the copy.

        Raises:
            BlobDamaged: It is missing, or has another size.
        """
        self._cache = cache
        try:
            super().__init__(path, blob, offset)
        except BlobDamaged:
            cache.drop(blob.sha256)
            raise

    def _verify(self, index: int, block: bytes) -> int:
        try:
            return super()._verify(index, block)
        except BlobDamaged:
            self._cache.drop(self._blob.sha256)
            raise


def _boot() -> str:
    """Returns what is different each time that the machine is started; empty if that is not known."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
