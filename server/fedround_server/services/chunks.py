"""Streams that carry a file in chunks: uploads after a spec, downloads after a description of the model."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Generic, Literal, Protocol, TypeVar

import google_crc32c

from fedround.v1 import event_pb2
from fedround_server.coordinator.uploads.receive import Incoming
from fedround_server.domain.errors import ChunkCorrupt, FieldInvalid, OffsetOutOfRange
from fedround_server.domain.model import BlobRef
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import fields
from fedround_server.services.compression import GZIP, Compressor, a_packing, unpack
from fedround_wire.frames import Frame

MAX_CHUNK = 1 << 20


class Message(Protocol):
    """A message of such a stream."""

    chunk: bytes
    chunk_crc32c: int
    packing: event_pb2.Packing.ValueType

    def HasField(self, field_name: Literal["spec", "chunk_crc32c"], /) -> bool:  # noqa: N802 - protobuf's name
        """Returns whether a field is set."""


M = TypeVar("M", bound=Message)


def check_offset(blob: BlobRef, offset: int) -> None:
    """Checks where a download starts.

    Raises:
        OffsetOutOfRange: It lies behind the end of the file.
    """
    if offset > blob.size_bytes:
        raise OffsetOutOfRange(f"offset: the file ends at {blob.size_bytes}, before {offset}")


class ChunkStream(Generic[M]):
    """Reads an upload: `first` returns the message with the spec, `chunks` the file.

    A stream that was cut off looks complete; only the declared size and digest show it.
    """

    def __init__(self, requests: AsyncIterator[M]) -> None:
        """Wraps a request iterator."""
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

    async def chunks(self, offset: int = 0) -> AsyncIterator[bytes]:
        """Yields the file, from an offset on.

        Raises:
            FieldInvalid: A chunk is too large, or a message after the first has a spec.
            ChunkCorrupt: A chunk was damaged in transit.
        """
        if self._first is not None and (data := await _take(self._first, offset)):
            yield data
            offset += len(data)
        async for message in self._requests:
            if message.HasField("spec"):
                raise FieldInvalid("spec", "belongs into the first message, once")
            if data := await _take(message, offset):
                yield data
                offset += len(data)


async def send_file(
    context: Call,
    message: Callable[..., Any],
    info: event_pb2.ModelInfo,
    chunks: AsyncGenerator[bytes, None],
    packer: Compressor | None,
) -> None:
    """Answers a download: first the description, then the file.

    Args:
        context: The call.
        message: The class of the stream's messages.
        info: The description.
        chunks: The file; closed at the end.
        packer: Compresses the chunks; None to send them as they are.
    """
    async with aclosing(chunks):
        await context.write(message(info=info))
        async for chunk in chunks:
            checksum, packed = google_crc32c.value(chunk), packer and await packer.pack(chunk)
            if packed is None:
                await context.write(Frame(chunk, checksum))
            else:
                await context.write(message(chunk=packed, chunk_crc32c=checksum, packing=GZIP))


def incoming(
    stream: ChunkStream[M], prefix: str, sha256: str, size_bytes: int, upload_id: str, offset: int
) -> Incoming:
    """Parses the declaration of a file.

    Args:
        stream: The file's stream.
        prefix: What the names of the declaring fields begin with.
        sha256: As declared; empty for none.
        size_bytes: As declared; 0 for none.
        upload_id: Makes the upload resumable; empty for none.
        offset: Where the chunks start.

    Raises:
        FieldInvalid: A field is malformed, or a resumable upload declares too little.
    """
    digest = fields.a_digest(f"{prefix}sha256", sha256)
    resumable = fields.an_optional_id("upload_id", upload_id)
    if resumable is not None and (digest is None or not size_bytes):
        raise FieldInvalid("upload_id", f"a resumable upload declares {prefix}sha256 and {prefix}size_bytes")
    if offset and (resumable is None or offset > size_bytes):
        raise FieldInvalid("offset", "goes with upload_id, and lies inside of the file")
    return Incoming(caller().user_id, stream.chunks(offset), digest, size_bytes or None, resumable, offset)


async def _take(message: Message, offset: int) -> bytes:
    """Checks a chunk; returns the bytes of the file that it carries."""
    # Read once: with protobuf's messages, each access to the field makes a copy.
    data = message.chunk
    size = len(data)
    if size > MAX_CHUNK:
        raise FieldInvalid("chunk", f"has {size} bytes; a message carries at most {MAX_CHUNK}")
    if size and a_packing(message.packing):
        data = await unpack(data, MAX_CHUNK, offset)
    if message.HasField("chunk_crc32c") and message.chunk_crc32c != google_crc32c.value(data):
        raise ChunkCorrupt(offset, size)
    return data
