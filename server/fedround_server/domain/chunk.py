"""Parts of files on their way."""

from typing import NamedTuple


class Chunk(NamedTuple):
    """Some bytes of a file, and their CRC-32C (Castagnoli)."""

    data: bytes
    crc32c: int
