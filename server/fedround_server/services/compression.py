"""Compression of chunks in transit: only on request, and one chunk at a time."""

import zlib

from fedround.v1 import event_pb2
from fedround_server.coordinator.tasks import in_thread
from fedround_server.domain.errors import ChunkCorrupt, FieldInvalid

GZIP = event_pb2.COMPRESSION_GZIP
LEVEL = 1
"""Higher levels take longer and make weights hardly smaller."""
# Of zlib: with the header and the checksum of gzip.
GZIP_BITS = 31


class Compressor:
    """Compresses chunks for all downloads of a server."""

    def __init__(self) -> None:
        self._busy = False

    async def compress(self, chunk: bytes) -> bytes | None:
        """Returns a chunk compressed; None if it does not get smaller, or while another one is being compressed.

        Compression takes twenty times as long as sending: downloads that ask for it share one thread and slow down no
        other call.
        """
        if self._busy:
            return None
        self._busy = True
        try:
            compressed = await in_thread(zlib.compress, chunk, LEVEL, GZIP_BITS)
        finally:
            self._busy = False
        return compressed if len(compressed) < len(chunk) else None


def parse_compression(value: event_pb2.Compression.ValueType) -> bool:
    """Returns whether chunks are compressed.

    Raises:
        FieldInvalid: The format is unknown.
    """
    if not value:
        return False
    if value not in event_pb2.Compression.values():
        raise FieldInvalid("compression", f"is {value}; known are {', '.join(event_pb2.Compression.keys())}")
    return value == GZIP


async def decompress(chunk: bytes, limit: int, offset: int) -> bytes:
    """Decompresses a chunk, in a thread and only up to a limit in bytes; errors name its offset in the file.

    Raises:
        FieldInvalid: The chunk decompresses to more, or more bytes follow.
        ChunkCorrupt: The chunk is not gzip, or is truncated.
    """
    decompressor = zlib.decompressobj(GZIP_BITS)
    try:
        data = await in_thread(decompressor.decompress, chunk, limit + 1)
    except zlib.error as error:
        raise ChunkCorrupt(offset, len(chunk)) from error
    if len(data) > limit or decompressor.unused_data:
        raise FieldInvalid(
            "chunk", f"decompresses to more than {limit} bytes, or more follows: compress each chunk by itself"
        )
    if not decompressor.eof:
        raise ChunkCorrupt(offset, len(chunk))
    return data
