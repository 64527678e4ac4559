"""Segments of the journal: files of entries, each of which has the bytes of a small file.

    group = entry* padding       begins at a multiple of BLOCK_BYTES, so that a later write never touches a synced block
    entry = HEADER bytes         the header has a magic number, the number of bytes, and their SHA-256

An entry is valid if its bytes have its digest, wherever they come from: what is behind the last entry may be left of an
earlier use of the segment.
"""

import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fedround_server.blobs.refs import SmallFile
from fedround_server.domain.model import BlobRef
from fedround_server.host.sync import sync_data

BLOCK_BYTES = 4096
HEADER = struct.Struct("<8sQ32s")
MAGIC = b"fedround"
MAX_BUFFERS = 512
"""How many buffers one system call writes; Linux allows 1,024."""


def group_bytes(files: Sequence[SmallFile]) -> int:
    """Returns how many bytes a group of entries has."""
    return -(-sum(HEADER.size + file.blob.size_bytes for file in files) // BLOCK_BYTES) * BLOCK_BYTES


def _encode(files: Sequence[SmallFile]) -> list[bytes]:
    """Returns the bytes of a group of entries, in pieces."""
    pieces: list[bytes] = []
    for file in files:
        pieces += (HEADER.pack(MAGIC, file.blob.size_bytes, bytes.fromhex(file.blob.sha256)), *file.pieces)
    return [*pieces, bytes(-sum(map(len, pieces)) % BLOCK_BYTES)]


def read_entries(path: Path) -> Iterator[SmallFile]:
    """Yields the valid entries of a segment, up to the first that is not.

    Raises:
        OSError: The segment cannot be read.
    """
    try:
        with path.open("rb") as file:
            while (entry := _read_entry(file)) is not None or _skip_padding(file):
                if entry is not None:
                    yield entry
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class Segment:
    """An open segment; the journal's lock protects it, except for `sync`.

    Attributes:
        size: How many bytes the file has.
        users: How many callers rely on entries whose files are not all made yet.
        is_broken: Whether a write or a sync has failed: nothing more is appended.
        is_doubtful: Whether a file of one of its entries may be lost although a later sync of the file system succeeds.
    """

    def __init__(self, path: Path) -> None:
        """Makes the file.

        Raises:
            OSError: There is no room for another file.
        """
        self.path = path
        self.size = 0
        self.users = 0
        self.is_broken = False
        self.is_doubtful = False
        self._end = 0
        self._synced = 0
        self._sync_lock = threading.Lock()
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)

    @property
    def is_empty(self) -> bool:
        """Whether it has no entries, but for those that are left of an earlier use."""
        return not self._end

    def end_after(self, size: int) -> int:
        """Returns where the entries would end with another group of a size, in bytes."""
        return self._end + size

    def append(self, files: Sequence[SmallFile]) -> int:
        """Appends a group, and returns where it ends, in bytes.

        Raises:
            OSError: It cannot be written; the segment is broken.
        """
        position, left = self._end, [memoryview(piece) for piece in _encode(files)]
        try:
            while left:
                written = os.pwritev(self._descriptor, left[:MAX_BUFFERS], position)
                position += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except BaseException:
            self.is_broken = True
            raise
        self._end, self.size = position, max(self.size, position)
        return position

    def sync(self, end: int) -> None:
        """Forces all groups up to one that ends at a position to disk; callers that wait for the same sync share it.

        Raises:
            OSError: They cannot be, now or at an earlier attempt; the segment is broken.
        """
        with self._sync_lock:
            if self._synced >= end:
                return
            if self.is_broken:
                # The kernel drops pages that it failed to write: a second sync would succeed and guarantee nothing.
                raise OSError(f"the journal's segment {self.path.name} could not be written")
            written = self._end
            try:
                sync_data(self._descriptor)
            except BaseException:
                self.is_broken = True
                raise
            self._synced = written

    def rewind(self) -> None:
        """Begins anew, in place: writing to blocks that the file has needs no change of the file system's metadata."""
        self._end = self._synced = 0
        self.is_doubtful = False

    def remove(self) -> None:
        """Closes and removes the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def _read_entry(file: BinaryIO) -> SmallFile | None:
    """Reads the next entry; leaves the file as it was if there is no valid one."""
    start = file.tell()
    header = file.read(HEADER.size)
    if len(header) == HEADER.size:
        magic, size, digest = HEADER.unpack(header)
        if magic == MAGIC and size <= os.fstat(file.fileno()).st_size - file.tell():
            data = file.read(size)
            if hashlib.sha256(data).digest() == digest:
                return SmallFile(BlobRef(digest.hex(), size), [data])
    file.seek(start)
    return None


def _skip_padding(file: BinaryIO) -> bool:
    """Moves to the next block; returns False at the beginning of one, or if there is none."""
    padding = -file.tell() % BLOCK_BYTES
    return padding > 0 and len(file.read(padding)) == padding
