"""Immutable files by the SHA-256 of what they contain, and the uploads that become them.

Layout of the folder: objects/AA/SHA256 are the blobs, uploads/USER/UPLOAD are resumable uploads, tmp/ holds what is
swept at the start.
"""

import errno
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from fedround_server.domain.errors import DiskFull, UploadOffset
from fedround_server.domain.model import BlobRef
from fedround_server.failpoints import reached
from fedround_server.host.page_cache import Writeback, keep_open

log = logging.getLogger(__name__)
READ_SIZE = 1 << 20
FETCHED = 8 << 20
"""How much the disk is asked for at a time, in bytes."""
# Linux.
RWF_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
# How old a blob without a row must be before it is collected: its transaction may be under way.
UNREFERENCED_SECONDS = 24 * 3600


@contextmanager
def map_disk_full() -> Iterator[None]:
    """Has the block tell of a full disk as such.

    Raises:
        DiskFull: There is no room for what the block writes.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("the server's disk is full: try again when the operator has made room") from error
        raise


class BlobWriter:
    """A file that is being received: hashes while it writes. A `with` block closes it, whatever happens.

    Without `keep`, leaving the block removes what was not committed; a resumable upload stays for the next try.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        """Opens or creates the file and moves behind what it contains.

        Args:
            path: Where the bytes go until they are committed.
            keep: Whether the file stays if it was not committed.

        Raises:
            DiskFull: There is no room for another file.
        """
        self.path = path
        self.size_bytes = 0
        self._keep = keep
        self._hash = hashlib.sha256()
        with map_disk_full():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._writeback = Writeback(self._descriptor)

    def __enter__(self) -> Self:
        """Enters the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file, and removes it unless it is kept, or empty: nobody could go on with it."""
        keep = self._keep and os.fstat(self._descriptor).st_size > 0
        os.close(self._descriptor)
        if not keep:
            self.path.unlink(missing_ok=True)

    def replay(self, see: Callable[[bytes], None]) -> None:
        """Reads what an earlier try left, hashes it, and shows it to `see`."""
        while data := os.read(self._descriptor, READ_SIZE):
            self._hash.update(data)
            self.size_bytes += len(data)
            see(data)

    def rewind(self, offset: int) -> None:
        """Drops everything behind offset, before anything is read or written."""
        os.ftruncate(self._descriptor, offset)

    def write(self, data: bytes) -> None:
        """Appends data, all of it or nothing.

        Raises:
            DiskFull: There is no room for it.
        """
        try:
            with map_disk_full():
                view = memoryview(data)
                while view:
                    view = view[os.write(self._descriptor, view) :]
        except BaseException:
            # Another try goes on behind what lies here, so that must be what was hashed.
            os.ftruncate(self._descriptor, self.size_bytes)
            os.lseek(self._descriptor, self.size_bytes, os.SEEK_SET)
            raise
        self._writeback.grown(self.size_bytes + len(data))
        self._hash.update(data)
        self.size_bytes += len(data)

    @property
    def blob(self) -> BlobRef:
        """What was received so far, as a blob."""
        return BlobRef(self._hash.hexdigest(), self.size_bytes)

    def sync(self) -> None:
        """Forces the file to disk.

        Raises:
            DiskFull: There is no room for it.
            OSError: It cannot be; then leaving the block removes it, so that another try writes all of it again.
        """
        try:
            with map_disk_full():
                os.fsync(self._descriptor)
        except BaseException:
            # The system takes for written what it could not write: a second sync would succeed and promise nothing.
            self.discard()
            raise

    def discard(self) -> None:
        """Has leaving the block remove the file, even a resumable one: another try could not mend it."""
        self._keep = False


class BlobReader:
    """A file that is being sent, chunk by chunk. A `with` block closes it."""

    def __init__(self, path: Path, offset: int, chunk_size: int) -> None:
        """Opens the file.

        Args:
            path: The file; it must not change.
            offset: Where to begin, in bytes.
            chunk_size: Bytes of each chunk but the last one.
        """
        self._descriptor = os.open(path, os.O_RDONLY)
        self._end = os.fstat(self._descriptor).st_size
        self._position = offset
        self._buffer = bytearray(chunk_size)

    def __enter__(self) -> Self:
        """Enters the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def read_cached(self) -> bytes | None:
        """Reads the next chunk if that is done without the disk; else returns None, and reads nothing.

        What the system has in memory is read in less time than a thread takes to be woken.
        """
        if RWF_NOWAIT is None:
            return None
        try:
            size = os.preadv(self._descriptor, [self._buffer], self._position, RWF_NOWAIT)
        except OSError:
            # Not in memory, or a file system that cannot tell.
            return None
        if size < min(len(self._buffer), self._end - self._position):
            return None
        self._position += size
        return bytes(memoryview(self._buffer)[:size])

    def read(self) -> bytes:
        """Reads the next chunk, and has what comes behind it fetched from the disk meanwhile."""
        size = len(self._buffer)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._position, FETCHED, os.POSIX_FADV_WILLNEED)
        chunk = b""
        while data := os.pread(self._descriptor, size - len(chunk), self._position):
            self._position += len(data)
            chunk += data
        return chunk


class BlobStore:
    """A folder of blobs.

    Attributes:
        stored_bytes: What all blobs have together, since `measure` counted those of earlier processes.
    """

    def __init__(self, root: Path) -> None:
        """Makes the folder's layout.

        Args:
            root: The folder.
        """
        self._objects = root / "objects"
        self._uploads = root / "uploads"
        self._tmp = root / "tmp"
        for folder in (self._objects, self._uploads, self._tmp):
            folder.mkdir(parents=True, exist_ok=True)
        sync_folder(root)
        self.stored_bytes = 0
        # The folders of blobs that are on disk for sure.
        self._made: set[Path] = set()
        # Else bytes that come again between the look at an old blob and its removal would go with it.
        self._lock = threading.Lock()

    def path(self, sha256: str) -> Path:
        """Returns where a blob is, or would be."""
        return self._objects / sha256[:2] / sha256

    def temporary(self, name: str) -> Path:
        """Returns a place for a file that does not outlive the process."""
        return self._tmp / name

    def upload(self, user_id: str, upload_id: str | None, offset: int, name: str) -> BlobWriter:
        """Opens the place that an upload is written to.

        Args:
            user_id: Whose upload it is: upload ids of different users never meet.
            upload_id: Makes it resumable; None for one try.
            offset: Where it goes on, in bytes.
            name: A name for an upload without an id.

        Raises:
            UploadOffset: The upload does not stand at that offset.
        """
        if upload_id is None:
            if offset:
                raise UploadOffset(offset, 0)
            return BlobWriter(self.temporary(name), keep=False)
        path = self._uploads / user_id / upload_id
        committed = self.upload_size(user_id, upload_id)
        if offset > committed:
            raise UploadOffset(offset, committed)
        writer = BlobWriter(path, keep=True)
        writer.rewind(offset)
        return writer

    def upload_size(self, user_id: str, upload_id: str) -> int:
        """Returns how many bytes of a resumable upload are here; 0 for an unknown one."""
        try:
            return (self._uploads / user_id / upload_id).stat().st_size
        except FileNotFoundError:
            return 0

    def unfinished(self) -> Iterator[tuple[str, str, int]]:
        """Returns all resumable uploads: of which user, their ids, and how many bytes are here."""
        for path in _files(self._uploads):
            with _tolerance(path):
                yield path.parent.name, path.name, path.stat().st_size

    def free_bytes(self) -> int:
        """Returns how much room the disk has for files of this process."""
        disk = os.statvfs(self._objects)
        return disk.f_bavail * disk.f_frsize

    def forget_user(self, user_id: str) -> None:
        """Removes a user's resumable uploads."""
        shutil.rmtree(self._uploads / user_id, ignore_errors=True)

    def forget_upload(self, user_id: str, upload_id: str) -> None:
        """Removes a resumable upload."""
        (self._uploads / user_id / upload_id).unlink(missing_ok=True)

    def adopt(self, source: Path, blob: BlobRef) -> None:
        """Turns a file into a blob, durably. The file must be on disk (fsync) already.

        The same bytes may be here already: then this file takes their place, and is not collected just now.

        Raises:
            DiskFull: There is no room for another file.
        """
        with map_disk_full():
            target = self.path(blob.sha256)
            if target.parent not in self._made:
                # Also one that is here: who made it may have been killed before it was on disk.
                target.parent.mkdir(exist_ok=True)
                sync_folder(self._objects)
                self._made.add(target.parent)
            with self._lock, keep_open(target):
                replaced = _size(target)
                source.replace(target)
                self.stored_bytes += blob.size_bytes - replaced
                reached("blob.renamed")
                # Behind the rename: an upload that is cut off before it must stay writable for its next try.
                target.chmod(0o400)
                os.utime(target)
            sync_folder(target.parent)
            reached("blob.folder_synced")

    def open(self, sha256: str, offset: int, chunk_size: int) -> BlobReader:
        """Opens a blob for reading from an offset, in chunks."""
        return BlobReader(self.path(sha256), offset, chunk_size)

    def measure(self) -> None:
        """Counts what is here; before serving only."""
        folders = [folder for folder in os.scandir(self._objects) if folder.is_dir()]
        self.stored_bytes = sum(entry.stat().st_size for folder in folders for entry in os.scandir(folder))

    def sweep(self) -> None:
        """Removes what an earlier process left in tmp; before serving only."""
        for path in self._tmp.iterdir():
            path.unlink()

    def old(self) -> list[str]:
        """Returns the digests of blobs that came so long ago that nobody needs those without a row."""
        return [path.name for path in _files(self._objects) if _is_old(path)]

    def collect(self, digests: Iterable[str]) -> int:
        """Removes blobs, except those that came again meanwhile.

        Args:
            digests: Those of old blobs without a row.

        Returns:
            How many blobs were removed.
        """
        sizes = [size for digest in digests if (size := self._remove_old(self.path(digest))) is not None]
        with self._lock:
            self.stored_bytes -= sum(sizes)
        return len(sizes)

    def collect_uploads(self) -> list[tuple[str, str]]:
        """Removes resumable uploads that nobody went on with.

        Returns:
            Of which user each was, and its id.
        """
        return [(path.parent.name, path.name) for path in _files(self._uploads) if self._remove_old(path) is not None]

    def _remove_old(self, path: Path) -> int | None:
        """Removes a file if it is old; returns the size of one that was removed."""
        with _tolerance(path), self._lock:
            if _is_old(path):
                size = path.stat().st_size
                path.unlink()
                return size
        return None


@contextmanager
def _tolerance(path: Path) -> Iterator[None]:
    """Has the block give up one path, and not the others; a path that is gone was removed or adopted meanwhile."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s stays as it is: %s", path, error)


def _size(path: Path) -> int:
    with _tolerance(path):
        return path.stat().st_size
    return 0


def _is_old(path: Path) -> bool:
    with _tolerance(path):
        return path.stat().st_mtime < time.time() - UNREFERENCED_SECONDS
    return False


def _files(folder: Path) -> Iterator[Path]:
    for sub in list(folder.iterdir()):
        inside: list[Path] = []
        with _tolerance(sub):
            inside = list(sub.iterdir())
        yield from inside


def sync_folder(folder: Path) -> None:
    """Forces to disk what is in a folder by which name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
