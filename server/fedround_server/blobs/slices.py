"""Files that are made of slices of stored ones while they are read."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import google_crc32c

from fedround_server.blobs.checksums import BLOCK_BYTES, damaged, map_damage, open_blob, verify_block
from fedround_server.blobs.protocol import BlobFiles
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.model import BlobRef


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes [start, end) of a blob."""

    blob: BlobRef
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How many bytes these are."""
        return self.end - self.start


class SliceReader(AbstractContextManager["SliceReader", None]):
    """Reads a file that is a header followed by slices, chunk by chunk; `BlobReader` describes the methods.

    Blocks of the blobs are verified before a part of them is used, if their references have checksums.
    """

    def __init__(self, files: BlobFiles, header: bytes, slices: Sequence[Slice], offset: int = 0) -> None:
        """Opens the blobs, which must not change.

        Args:
            files: Where the blobs are.
            header: The first bytes of the file.
            slices: What follows.
            offset: Where to start, in bytes of the file.

        Raises:
            BlobDamaged: A blob is missing, or has another size.
        """
        self._header = header
        self._slices = slices
        self._position = offset
        # Where each slice ends in the file.
        self._ends = list(accumulate((one.size_bytes for one in slices), initial=len(header)))[1:]
        with ExitStack() as stack:
            blobs = {one.blob for one in slices}
            self._blobs = {
                blob: stack.enter_context(_VerifiedBlocks(files.local_path(blob), blob))
                for blob in sorted(blobs, key=lambda one: one.sha256)
            }
            self._open = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        """Closes the blobs."""
        self._open.close()

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return self._ends[-1] if self._ends else len(self._header)

    def read_cached(self) -> Chunk | None:
        """Returns None: reading may wait for a disk."""
        return None

    def read(self) -> Chunk:
        """Reads the next chunk, which is empty at the end.

        Raises:
            BlobDamaged: A blob cannot be read, or does not have the bytes that were stored.
        """
        # Chunks end where those of a stored file would.
        wanted = BLOCK_BYTES - self._position % BLOCK_BYTES
        data = b"".join(self._pieces(self._position, min(self._position + wanted, self.size_bytes)))
        self._position += len(data)
        return Chunk(data, google_crc32c.value(data))

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yields the bytes [start, end) of the file, which end within it."""
        if start < len(self._header):
            yield self._header[start:end]
            start = len(self._header)
        index = bisect_right(self._ends, start)
        while start < end:
            one, stop = self._slices[index], min(end, self._ends[index])
            behind = one.end - self._ends[index]
            yield from self._blobs[one.blob].pieces(start + behind, stop + behind)
            start = stop
            index += 1


class _VerifiedBlocks(AbstractContextManager["_VerifiedBlocks", None]):
    """A blob that is read block by block; the last block is kept, since the next slice may begin in it."""

    def __init__(self, path: Path, blob: BlobRef) -> None:
        self._path = path
        self._blob = blob
        self._index = -1
        self._block = b""
        self._file = open_blob(path, blob)
        self._descriptor = self._file.fileno()

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yields the bytes [start, end) of the blob."""
        while start < end:
            first = start - start % BLOCK_BYTES
            self._load(start // BLOCK_BYTES)
            piece = self._block[start - first : end - first]
            yield piece
            start += len(piece)

    def _load(self, index: int) -> None:
        if index == self._index:
            return
        start = index * BLOCK_BYTES
        size = min(BLOCK_BYTES, self._blob.size_bytes - start)
        block = b""
        with map_damage(self._blob, self._path):
            while len(block) < size and (data := os.pread(self._descriptor, size - len(block), start + len(block))):
                block += data
        if len(block) < size:
            raise damaged(self._blob, self._path, f"ends at byte {start + len(block)}")
        if self._blob.checksums:
            verify_block(self._blob, self._path, index, block)
        self._index, self._block = index, block
