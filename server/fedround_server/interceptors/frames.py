"""Chunks of files on the wire, without protobuf's copies.

protobuf copies a field of bytes three times: into the message, into the serialised message, and out of that. Nearly all
that the server moves are messages of a chunk and its CRC-32C and nothing else. Those are put together and taken apart
here, one copy each; what looks different in any way goes through protobuf.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor

from fedround_server.interceptors.around import Handler, WrappingInterceptor, rebuilt

CHUNK_FIELDS = {"chunk", "chunk_crc32c"}
BYTES, FIXED32 = 2, 5
"""Wire types (https://protobuf.dev/programming-guides/encoding/)."""


class Frame(NamedTuple):
    """A message of a chunk and its CRC-32C and nothing else; looks like the protobuf message that it stands for."""

    chunk: bytes
    chunk_crc32c: int
    packing: int = 0

    def HasField(self, field_name: str, /) -> bool:  # noqa: N802 - protobuf's name
        """Tells whether a field is there."""
        return field_name == "chunk_crc32c"


class FrameCodec:
    """How the messages of one stream are written that carry nothing but a chunk and its CRC-32C."""

    def __init__(self, descriptor: Descriptor) -> None:
        """Takes the fields' numbers from the description of the messages."""
        fields = descriptor.fields_by_name
        self._chunk_tag = _tag(fields["chunk"], BYTES)
        self._crc_tag = _tag(fields["chunk_crc32c"], FIXED32)

    def encode(self, frame: Frame) -> bytes:
        """Writes a message, as protobuf does."""
        crc = frame.chunk_crc32c.to_bytes(4, "little")
        return b"".join((self._chunk_tag, _varint(len(frame.chunk)), frame.chunk, self._crc_tag, crc))

    def decode(self, data: bytes) -> Frame | None:
        """Reads a message; returns None if it is another one, which protobuf has to look at."""
        if not data.startswith(self._chunk_tag):
            return None
        size, start = _read_varint(data, 1)
        end = start + size
        if start == 0 or len(data) != end + 5 or data[end : end + 1] != self._crc_tag:
            return None
        return Frame(data[start:end], int.from_bytes(data[end + 1 :], "little"))


class FrameInterceptor(WrappingInterceptor):
    """Has the streams of files read and written by frames."""

    def __init__(self, services: Iterable[ServiceDescriptor]) -> None:
        """Finds the streams whose messages carry chunks.

        Args:
            services: All that the server has.
        """
        self.uploads: dict[str, FrameCodec] = {}
        self.downloads: dict[str, FrameCodec] = {}
        for service in services:
            for method in service.methods:
                name = f"/{service.full_name}/{method.name}"
                if method.client_streaming and CHUNK_FIELDS.issubset(method.input_type.fields_by_name):
                    self.uploads[name] = FrameCodec(method.input_type)
                if method.server_streaming and CHUNK_FIELDS.issubset(method.output_type.fields_by_name):
                    self.downloads[name] = FrameCodec(method.output_type)

    def concerns(self, method: str) -> bool:
        """Tells whether a method's messages carry chunks."""
        return method in self.uploads or method in self.downloads

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Puts the codec in front of protobuf's."""
        deserializer, serializer = handler.request_deserializer, handler.response_serializer
        if method in self.uploads:
            deserializer = _reading(self.uploads[method], handler.request_deserializer)
        if method in self.downloads:
            serializer = _writing(self.downloads[method], handler.response_serializer)
        return rebuilt(handler, lambda inner: inner, deserializer, serializer)


def _reading(codec: FrameCodec, other: Any) -> Callable[[bytes], Any]:
    return lambda data: codec.decode(data) or other(data)


def _writing(codec: FrameCodec, other: Any) -> Callable[[Any], bytes]:
    return lambda message: codec.encode(message) if isinstance(message, Frame) else other(message)


def _tag(field: FieldDescriptor, wire_type: int) -> bytes:
    return bytes([field.number << 3 | wire_type])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Returns a number of up to 28 bits and where it ends; 0, 0 if there is none."""
    number = 0
    for index, byte in enumerate(data[start : start + 4]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, start + index + 1
    return 0, 0


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
