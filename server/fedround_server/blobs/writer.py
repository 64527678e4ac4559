"""Local files that are being received."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fedround_server.blobs.digest import BlobDigest
from fedround_server.blobs.disk_full import map_disk_full
from fedround_server.blobs.refs import StagedBlob, StagedRef, UploadRef
from fedround_server.host.folder import make_private
from fedround_server.host.page_cache import Writeback
from fedround_server.host.sync import sync_file

READ_SIZE = 1 << 20


class LocalWriter(AbstractContextManager["LocalWriter", None]):
    """A file that is being received; `BlobWriter` describes the methods."""

    def __init__(self, ref: UploadRef | StagedRef, path: Path, offset: int = 0) -> None:
        """Opens or creates the file, and drops the bytes behind an offset; a resumable upload is kept if not committed.

        Raises:
            DiskFull: There is no room for another file.
        """
        self._ref = ref
        self._path = path
        self._keep = isinstance(ref, UploadRef)
        self._digest = BlobDigest()
        with map_disk_full():
            make_private(path.parent)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._writeback = Writeback(self._descriptor)
        os.ftruncate(self._descriptor, offset)

    def __exit__(self, *_: object) -> None:
        """Closes the file, and removes it unless another attempt can go on with it."""
        keep = self._keep and os.fstat(self._descriptor).st_size > 0
        os.close(self._descriptor)
        if not keep:
            self._path.unlink(missing_ok=True)

    @property
    def size_bytes(self) -> int:
        """How many bytes were replayed and written."""
        return self._digest.size_bytes

    def replay(self, see: Callable[[bytes], None]) -> None:
        """Reads what an earlier attempt left, hashes it, and passes it to `see`."""
        while data := os.read(self._descriptor, READ_SIZE):
            self._digest.update(data)
            see(data)

    def write(self, data: bytes, crc32c: int | None = None) -> None:
        """Appends data, all of it or nothing."""
        try:
            with map_disk_full():
                write_all(self._descriptor, data)
        except BaseException:
            # Another attempt goes on behind what is in the file, so that must be what was hashed.
            os.ftruncate(self._descriptor, self.size_bytes)
            os.lseek(self._descriptor, self.size_bytes, os.SEEK_SET)
            raise
        self._writeback.grown(self.size_bytes + len(data))
        self._digest.update(data, crc32c)

    @property
    def staged(self) -> StagedBlob:
        """What was replayed and written."""
        return StagedBlob(self._ref, self._digest.blob)

    def sync(self) -> None:
        """Forces the file to disk; if that fails, leaving the block removes it."""
        try:
            with map_disk_full():
                sync_file(self._descriptor)
        except BaseException:
            # The kernel drops pages that it failed to write: a second fsync would succeed and guarantee nothing.
            self.discard()
            raise

    def discard(self) -> None:
        """Makes leaving the block remove the file."""
        self._keep = False


def write_all(descriptor: int, data: bytes) -> None:
    """Writes data to a file, in as many calls as that takes.

    Raises:
        OSError: A part could not be written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
