"""Checksums of blocks: how a file is verified while it is read, without reading all of it."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import google_crc32c

from fedround_server.domain.model import BlobRef

BLOCK_BYTES = 3 << 18
"""Bytes that have a checksum of their own, and the chunk of a download: 768 KiB, so that base64 needs no padding."""
CRC_BYTES = 4
"""Bytes of a checksum: a CRC-32C (Castagnoli), little-endian."""


class BlobDamaged(Exception):
    """A blob does not have the bytes that it was stored with. Can be pickled.

    Attributes:
        sha256: The digest that its bytes should have.
        file: Where the file is, or should be, relative to the data directory.
        problem: What is wrong with it.
    """

    def __init__(self, sha256: str, file: str, problem: str) -> None:
        super().__init__(sha256, file, problem)
        self.sha256 = sha256
        self.file = file
        self.problem = problem

    def __str__(self) -> str:
        return f"the file {self.file} {self.problem}"


class BlockChecksums:
    """Computes the checksums of a file's blocks while it is read or written in order."""

    def __init__(self) -> None:
        self._complete = bytearray()
        self._crc = 0
        self._left = BLOCK_BYTES

    def update(self, data: bytes | memoryview, crc32c: int | None = None) -> None:
        """Adds the next bytes, whose CRC-32C may be known."""
        start = 0
        while start < len(data):
            piece = data[start : start + self._left]
            if crc32c is not None and self._left == BLOCK_BYTES and len(piece) == len(data):
                # The SDK sends whole blocks.
                self._crc = crc32c
            else:
                # It takes no other buffers than bytes. All of them are sliced without a copy.
                self._crc = google_crc32c.extend(self._crc, bytes(piece))
            self._left -= len(piece)
            start += len(piece)
            if not self._left:
                self._complete += _encode(self._crc)
                self._crc, self._left = 0, BLOCK_BYTES

    def digest(self) -> bytes:
        """Returns the checksums of all blocks so far; the last block may be shorter."""
        return bytes(self._complete) + (_encode(self._crc) if self._left < BLOCK_BYTES else b"")


def verify_block(blob: BlobRef, path: Path, index: int, block: bytes) -> int:
    """Verifies a block of a blob, and returns its CRC-32C.

    Args:
        blob: The blob, with its checksums.
        path: Its file.
        index: Which block it is, from 0.
        block: What the file has there.

    Raises:
        BlobDamaged: These are not the bytes that were stored.
    """
    crc: int = google_crc32c.value(block)
    if blob.checksums[CRC_BYTES * index : CRC_BYTES * (index + 1)] != _encode(crc):
        start = BLOCK_BYTES * index
        raise damaged(blob, path, f"is damaged between the bytes {start} and {start + len(block)}")
    return crc


def damaged(blob: BlobRef, path: Path, problem: str) -> BlobDamaged:
    """Returns the error about a blob whose file is at a path."""
    return BlobDamaged(blob.sha256, "/".join(path.parts[-3:]), problem)


@contextmanager
def map_damage(blob: BlobRef, path: Path) -> Iterator[None]:
    """Maps the operating system's errors about a file that is gone or unreadable to `BlobDamaged`.

    Raises:
        BlobDamaged: The block could not read the file of the blob.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(blob, path, "is missing") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise damaged(blob, path, "cannot be read: the disk reports an error") from error


def open_blob(path: Path, blob: BlobRef) -> FileIO:
    """Opens the file of a blob.

    Raises:
        BlobDamaged: It is missing, cannot be read, or has another size.
    """
    with map_damage(blob, path):
        descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    if size != blob.size_bytes:
        os.close(descriptor)
        raise damaged(blob, path, f"has {size} bytes instead of {blob.size_bytes}")
    return FileIO(descriptor)


def _encode(crc: int) -> bytes:
    return crc.to_bytes(CRC_BYTES, "little")


def examine_file(path: Path, blob: BlobRef) -> BlobRef:
    """Reads all of a blob's file, and returns the blob with the checksums of its blocks.

    Raises:
        BlobDamaged: It is not there, cannot be read, or does not have the bytes that its SHA-256 is of.
    """
    digest, checksums, size = hashlib.sha256(), BlockChecksums(), 0
    with map_damage(blob, path), path.open("rb", buffering=0) as file:
        while data := file.read(BLOCK_BYTES):
            digest.update(data)
            checksums.update(data)
            size += len(data)
    if digest.hexdigest() != blob.sha256:
        raise damaged(blob, path, f"is damaged: its SHA-256 is {digest.hexdigest()}")
    return BlobRef(blob.sha256, size, checksums.digest())
