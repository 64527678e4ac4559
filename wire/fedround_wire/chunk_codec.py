"""Chunks of files on the wire, without protobuf's copies.

protobuf copies a field of bytes three times on its way: into the message, into the serialised message, and out of that.
Nearly all that moves between client and server are messages of a chunk and its CRC-32C and nothing else. Those are put
together here and taken apart with one copy each; what looks different in any way goes through protobuf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

CHUNK_FIELDS = {"chunk", "chunk_crc32c"}
BYTES, FIXED32 = 2, 5
"""Wire types (https://protobuf.dev/programming-guides/encoding/)."""


class ChunkMessage(NamedTuple):
    """A message of a chunk and its CRC-32C and nothing else; looks like the protobuf message that it stands for.

    Attributes:
        chunk: The bytes.
        chunk_crc32c: Their CRC-32C.
        packing: They are not packed.
    """

    chunk: bytes
    chunk_crc32c: int
    packing: int = 0

    def HasField(self, field_name: str, /) -> bool:  # noqa: N802 - protobuf's name
        """Tells whether a field is there."""
        return field_name == "chunk_crc32c"


class ChunkCodec:
    """How the messages of one stream are written that carry nothing but a chunk and its CRC-32C."""

    def __init__(self, descriptor: Descriptor) -> None:
        """Takes the fields' numbers from the description of the messages."""
        fields = descriptor.fields_by_name
        self._chunk_tag = _tag(fields["chunk"], BYTES)
        self._crc_tag = _tag(fields["chunk_crc32c"], FIXED32)

    def encode(self, frame: ChunkMessage) -> bytes:
        """Writes a message, as protobuf does."""
        crc = frame.chunk_crc32c.to_bytes(4, "little")
        return b"".join((self._chunk_tag, _varint(len(frame.chunk)), frame.chunk, self._crc_tag, crc))

    def decode(self, data: bytes) -> ChunkMessage | None:
        """Reads a message; returns None if it is another one, which protobuf has to look at."""
        if not data.startswith(self._chunk_tag):
            return None
        size, start = _read_varint(data, 1)
        end = start + size
        if start == 0 or len(data) != end + 5 or data[end : end + 1] != self._crc_tag:
            return None
        return ChunkMessage(data[start:end], int.from_bytes(data[end + 1 :], "little"))

    def writing(self, other: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        """Returns a serializer of frames, which leaves what is none to another one."""
        return lambda message: self.encode(message) if isinstance(message, ChunkMessage) else other(message)

    def reading(self, other: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Returns a deserializer that gives frames, and leaves what is none to another one."""
        return lambda data: self.decode(data) or other(data)


def upload_codec(method: MethodDescriptor) -> ChunkCodec | None:
    """Returns how chunks of a method's requests are written; None if it takes no stream of them."""
    return _codec(method.input_type) if method.client_streaming and not method.server_streaming else None


def download_codec(method: MethodDescriptor) -> ChunkCodec | None:
    """Returns how chunks of a method's responses are written; None if it gives no stream of them."""
    return _codec(method.output_type) if method.server_streaming and not method.client_streaming else None


def _codec(messages: Descriptor) -> ChunkCodec | None:
    return ChunkCodec(messages) if CHUNK_FIELDS.issubset(messages.fields_by_name) else None


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
