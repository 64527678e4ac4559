"""Local files that are being sent."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import google_crc32c

from fedround_server.blobs.checksums import BLOCK_BYTES, map_damage, open_blob, verify_block
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.model import BlobRef

READ_AHEAD = 8 << 20
"""How much the disk is asked for at a time, in bytes."""
# Linux only.
RWF_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


class LocalReader(AbstractContextManager["LocalReader", None]):
    """A file that is being sent, block by block; `BlobReader` describes the methods."""

    def __init__(self, path: Path, blob: BlobRef, offset: int) -> None:
        """Opens the file, which must not change, at an offset.

        Raises:
            BlobDamaged: It is missing, or has another size.
        """
        self._path = path
        self._blob = blob
        self._offset = offset
        self._buffer = bytearray(BLOCK_BYTES)
        # Whole blocks are read and verified, even if the offset lies within one.
        self._position = offset - offset % BLOCK_BYTES
        self._file = open_blob(path, blob)
        self._descriptor = self._file.fileno()

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()

    def read_cached(self) -> Chunk | None:
        """Reads the next chunk if it is in the page cache; otherwise returns None and reads nothing.

        Reading from memory takes less time than waking a thread.
        """
        if RWF_NOWAIT is None:
            return None
        try:
            size = os.preadv(self._descriptor, [self._buffer], self._position, RWF_NOWAIT)
        except OSError:
            # Not in memory, or a file system that does not support the flag.
            return None
        if size < min(BLOCK_BYTES, self._blob.size_bytes - self._position):
            return None
        return self._chunk(bytes(memoryview(self._buffer)[:size]))

    def read(self) -> Chunk:
        """Reads the next chunk, and starts reading ahead from the disk."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._position, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        block = b""
        with map_damage(self._blob, self._path):
            while data := os.pread(self._descriptor, BLOCK_BYTES - len(block), self._position + len(block)):
                block += data
        return self._chunk(block)

    def _verify(self, index: int, block: bytes) -> int:
        """Verifies a block, if its checksum is known; returns its CRC-32C."""
        if not self._blob.checksums:
            crc32c: int = google_crc32c.value(block)
            return crc32c
        return verify_block(self._blob, self._path, index, block)

    def _chunk(self, block: bytes) -> Chunk:
        """Verifies the next block, and returns what of it is behind the offset."""
        start = self._position
        if not block:
            return Chunk(b"", 0)
        crc32c = self._verify(start // BLOCK_BYTES, block)
        self._position += len(block)
        if self._offset <= start:
            return Chunk(block, crc32c)
        rest = block[self._offset - start :]
        return Chunk(rest, google_crc32c.value(rest))
