"""Computes what a blob is known by, while its bytes are read or written in order."""

import hashlib

from fedround_server.blobs.checksums import BlockChecksums
from fedround_server.domain.model import BlobRef


class BlobDigest:
    """The SHA-256 of some bytes, the checksums of their blocks, and their number."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._checksums = BlockChecksums()

    def update(self, data: bytes | memoryview, crc32c: int | None = None) -> None:
        """Adds the next bytes, whose CRC-32C may be known."""
        self._hash.update(data)
        self._checksums.update(data, crc32c)
        self.size_bytes += len(data)

    @property
    def blob(self) -> BlobRef:
        """The blob that has the bytes so far."""
        return BlobRef(self._hash.hexdigest(), self.size_bytes, self._checksums.digest())
