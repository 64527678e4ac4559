"""Verifies stored files against the checksums of their blocks while they are read."""

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path

from fedround_server.blobs import BLOCK_BYTES, damaged, map_damage, verify_block
from fedround_server.domain.model import BlobRef


class Verifier(AbstractContextManager["Verifier", None]):
    """Verifies the blocks of a file, each before it is used first. Its `with` block closes the file.

    A block is read with a system call: where the disk cannot read, that is an error. In memory that the file is mapped
    to, it would end the process.
    """

    def __init__(self, path: Path, blob: BlobRef) -> None:
        """Checks the size; a file without checksums, of an earlier version of the server, is verified at once.

        Raises:
            BlobDamaged: It is missing, or has another size, or another digest.
        """
        self._path = path
        self._blob = blob
        with map_damage(blob, path):
            self._file = path.open("rb", buffering=0)
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size != blob.size_bytes:
                raise damaged(blob, path, f"has {size} bytes instead of {blob.size_bytes}")
            # One byte for each block.
            self._verified = bytearray(-(-size // BLOCK_BYTES))
            if not blob.checksums:
                self._verify_digest()
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()

    def verify(self, start: int, end: int) -> None:
        """Verifies the blocks that the bytes [start, end) lie in.

        Raises:
            BlobDamaged: One cannot be read, or does not have the bytes that were stored.
        """
        for index in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            if not self._verified[index]:
                with map_damage(self._blob, self._path):
                    block = os.pread(self._file.fileno(), BLOCK_BYTES, index * BLOCK_BYTES)
                verify_block(self._blob, self._path, index, block)
                self._verified[index] = True

    def _verify_digest(self) -> None:
        with map_damage(self._blob, self._path):
            found = hashlib.file_digest(self._file, "sha256").hexdigest()
        if found != self._blob.sha256:
            raise damaged(self._blob, self._path, f"is damaged: its SHA-256 is {found}")
        self._verified = bytearray(b"\1" * len(self._verified))
