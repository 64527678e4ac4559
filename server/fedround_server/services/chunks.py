"""Streams that carry a file in chunks: uploads after a spec, downloads after a description."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Generic, Literal, Protocol, TypeVar

import google_crc32c

from fedround.v1 import event_pb2
from fedround_server.coordinator.uploads.receive import Incoming
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import ChunkCorrupt, FieldInvalid, OffsetOutOfRange
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import fields
from fedround_server.services.compression import GZIP, Compressor, decompress, parse_compression
from fedround_wire.chunk_codec import ChunkMessage

MAX_CHUNK = 1 << 20


class Message(Protocol):
    """A request message of an upload."""

    chunk: bytes
    chunk_crc32c: int
    compression: event_pb2.Compression.ValueType

    def HasField(self, field_name: Literal["spec", "chunk_crc32c"], /) -> bool:  # noqa: N802 - protobuf's name
        """Returns whether a field is set."""


M = TypeVar("M", bound=Message)


def check_offset(size_bytes: int, offset: int) -> None:
    """Checks the offset where a download of a file of a size in bytes starts.

    Raises:
        OffsetOutOfRange: It is behind the end of the file.
    """
    if offset > size_bytes:
        raise OffsetOutOfRange(f"offset: the file ends at {size_bytes}, before {offset}: start within the file")


class ChunkStream(Generic[M]):
    """Reads an upload: `first` returns the message with the spec, `chunks` the file.

    A stream that was cut off looks like a complete one: only the declared size and digest show the difference.
    """

    def __init__(self, requests: AsyncIterator[M]) -> None:
        self._requests = requests
        self._first: M | None = None

    async def first(self) -> M:
        """Reads the first message.

        Raises:
            FieldInvalid: It is missing, or has no spec.
        """
        async for message in self._requests:
            if not message.HasField("spec"):
                raise FieldInvalid("spec", "is required in the first message: send it before, or with, the first chunk")
            self._first = message
            return message
        raise FieldInvalid("spec", "is required, and the stream is empty: send a message with the spec first")

    async def chunks(self, offset: int = 0) -> AsyncIterator[Chunk]:
        """Yields the chunks of the file, which start at an offset.

        Raises:
            FieldInvalid: A chunk is too large, or a spec comes late or twice.
            ChunkCorrupt: A chunk was damaged in transit.
        """
        if self._first is not None and (chunk := await _take(self._first, offset)).data:
            yield chunk
            offset += len(chunk.data)
        async for message in self._requests:
            if message.HasField("spec"):
                raise FieldInvalid("spec", "is allowed in the first message only")
            if (chunk := await _take(message, offset)).data:
                yield chunk
                offset += len(chunk.data)


async def send_file(
    context: Call,
    message: Callable[..., Any],
    info: event_pb2.ModelInfo,
    chunks: AsyncGenerator[Chunk, None],
    compressor: Compressor | None,
) -> None:
    """Answers a download with messages of a class: the description of the file, then its chunks, closed at the end.

    Without a compressor they are sent as they are.
    """
    async with aclosing(chunks):
        await context.write(message(info=info))
        async for chunk, checksum in chunks:
            compressed = None if compressor is None else await compressor.compress(chunk)
            if compressed is None:
                await context.write(ChunkMessage(chunk, checksum))
            else:
                await context.write(message(chunk=compressed, chunk_crc32c=checksum, compression=GZIP))


def incoming(
    stream: ChunkStream[M],
    prefix: str,
    sha256: str,
    size_bytes: int,
    upload_id: str,
    offset: int,
    training_id: str | None = None,
    number: int = 0,
) -> Incoming:
    """Returns an upload as its fields, whose names begin with a prefix, declare it; "" and 0 declare nothing.

    An update is for a training and for the round of a number.

    Raises:
        FieldInvalid: A field is malformed, or a resumable upload declares too little.
    """
    digest = fields.parse_digest(f"{prefix}sha256", sha256)
    resumable = fields.parse_optional_id("upload_id", upload_id)
    if resumable is not None and (digest is None or not size_bytes):
        raise FieldInvalid("upload_id", f"requires {prefix}sha256 and {prefix}size_bytes: set them too")
    if offset and (resumable is None or offset > size_bytes):
        raise FieldInvalid("offset", "requires upload_id, and must not be behind the end of the file")
    chunks = stream.chunks(offset)
    return Incoming(caller().user_id, chunks, digest, size_bytes or None, resumable, offset, training_id, number)


async def _take(message: Message, offset: int) -> Chunk:
    """Returns the bytes of the file that a message carries, checked and decompressed."""
    # Read once: protobuf copies the bytes at each access.
    data = message.chunk
    size = len(data)
    if size > MAX_CHUNK:
        raise FieldInvalid("chunk", f"has {size} bytes; a message carries at most {MAX_CHUNK}")
    if size and parse_compression(message.compression):
        data = await decompress(data, MAX_CHUNK, offset)
    crc32c = google_crc32c.value(data)
    if message.HasField("chunk_crc32c") and message.chunk_crc32c != crc32c:
        raise ChunkCorrupt(offset, size)
    return Chunk(data, crc32c)
