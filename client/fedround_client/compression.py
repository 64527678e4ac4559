"""Compression of single chunks with gzip."""

from __future__ import annotations

import zlib

from fedround.v1.event_pb2 import COMPRESSION_GZIP, COMPRESSION_UNSPECIFIED, Compression
from fedround_client.payload import Chunk

MAX_CHUNK = 2**20
"""The largest chunk that the API allows, in bytes."""
# Higher levels of zlib take longer, and make weights hardly smaller.
_LEVEL = 1
# For zlib: with the header and the checksum of gzip.
_WBITS = 31


class CompressionError(ValueError):
    """The bytes are not a compressed chunk of a valid size."""


def compress(chunk: Chunk, compression: Compression.ValueType) -> tuple[Chunk, Compression.ValueType]:
    """Compresses a chunk if that makes it smaller.

    Args:
        chunk: Bytes of a file.
        compression: The method; COMPRESSION_UNSPECIFIED for none.

    Returns:
        The bytes to send, and the method that was used.
    """
    if compression == COMPRESSION_GZIP:
        compressed: bytes = zlib.compress(chunk, _LEVEL, _WBITS)
        if len(compressed) < len(chunk):
            return compressed, compression
    return chunk, COMPRESSION_UNSPECIFIED


def decompress(data: bytes, compression: Compression.ValueType) -> bytes:
    """Returns the chunk that was compressed. Never allocates more than the largest chunk.

    Raises:
        CompressionError: The data is damaged, or is more than one chunk.
    """
    if compression == COMPRESSION_UNSPECIFIED:
        return data
    decompressor = zlib.decompressobj(_WBITS)
    try:
        chunk = decompressor.decompress(data, MAX_CHUNK + 1)
    except zlib.error as error:
        raise CompressionError(str(error)) from error
    if len(chunk) > MAX_CHUNK or not decompressor.eof or decompressor.unused_data:
        raise CompressionError("not exactly one chunk")
    return chunk
