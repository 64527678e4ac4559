"""Chunks that are packed on their way: only if somebody asks for it, and never more at once than one."""

import zlib

from fedround.v1 import event_pb2
from fedround_server.coordinator.tasks import in_thread
from fedround_server.domain.errors import ChunkCorrupt, FieldInvalid

GZIP = event_pb2.PACKING_GZIP
LEVEL = 1
"""Higher levels save hardly more of weights, and take longer."""
# Of zlib: with the header and the checksum of gzip.
GZIP_BITS = 31


class Compressor:
    """Packs chunks for all downloads of a server."""

    def __init__(self) -> None:
        """Begins with nothing to do."""
        self._busy = False

    async def pack(self, chunk: bytes) -> bytes | None:
        """Packs a chunk; None if it does not get smaller, or while another one is being packed.

        Packing takes twenty times as long as sending: those who ask for it share one thread, and slow down nobody.
        """
        if self._busy:
            return None
        self._busy = True
        try:
            packed = await in_thread(zlib.compress, chunk, LEVEL, GZIP_BITS)
        finally:
            self._busy = False
        return packed if len(packed) < len(chunk) else None


def a_packing(value: event_pb2.Packing.ValueType) -> bool:
    """Reads whether chunks are packed.

    Raises:
        FieldInvalid: In a way that the server does not know.
    """
    if not value:
        return False
    if value not in event_pb2.Packing.values():
        raise FieldInvalid("packing", f"is {value}; known are {', '.join(event_pb2.Packing.keys())}")
    return value == GZIP


async def unpack(chunk: bytes, limit: int, offset: int) -> bytes:
    """Unpacks a chunk, in a thread and not beyond the limit.

    Args:
        chunk: What was sent.
        limit: What it may unpack to, in bytes.
        offset: Where it belongs in the file, to be told of.

    Raises:
        FieldInvalid: It unpacks to more, or more follows.
        ChunkCorrupt: It is not gzip, or is cut.
    """
    unpacking = zlib.decompressobj(GZIP_BITS)
    try:
        data = await in_thread(unpacking.decompress, chunk, limit + 1)
    except zlib.error as error:
        raise ChunkCorrupt(offset, len(chunk)) from error
    if len(data) > limit or unpacking.unused_data:
        raise FieldInvalid("chunk", f"unpacks to more than {limit} bytes, or more follows: pack each chunk by itself")
    if not unpacking.eof:
        raise ChunkCorrupt(offset, len(chunk))
    return data
