"""A codec for messages that carry chunks of files, without protobuf's copies.

protobuf copies a bytes field three times: into the message, into the serialised message, and out of it. Nearly all
traffic between client and server consists of messages that have a chunk and its CRC-32C, and at most a spec. This
module encodes and decodes those with one copy each; every other message is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

CHUNK_FIELDS = {"chunk", "chunk_crc32c"}
FIRST_FIELDS = {"spec", "compression", *CHUNK_FIELDS}
"""The fields of a message that has nothing but a spec next to its chunk."""
BYTES, FIXED32 = 2, 5
"""Wire types (https://protobuf.dev/programming-guides/encoding/)."""


class ChunkMessage(NamedTuple):
    """A message with a chunk, its CRC-32C and at most a spec. It has the interface of the protobuf message it replaces.

    Attributes:
        chunk: Bytes of the file.
        chunk_crc32c: CRC-32C of the chunk.
        compression: 0: the chunk is not compressed.
        spec: The spec, in the first message of an upload; None if there is none.
    """

    chunk: bytes
    chunk_crc32c: int
    compression: int = 0
    spec: Any = None

    def HasField(self, field_name: str, /) -> bool:  # noqa: N802 - protobuf's name
        """Returns whether an optional field is set."""
        return field_name == "chunk_crc32c" or (field_name == "spec" and self.spec is not None)


class ChunkCodec:
    """Encodes and decodes the chunk messages of one message type."""

    def __init__(self, descriptor: Descriptor) -> None:
        """Reads the field numbers from the descriptor of the message type."""
        fields = descriptor.fields_by_name
        self._chunk_tag = _tag(fields["chunk"], BYTES)
        self._crc_tag = _tag(fields["chunk_crc32c"], FIXED32)
        self._spec_tag = _tag(fields["spec"], BYTES) if set(fields) == FIRST_FIELDS else None

    def encode(self, message: ChunkMessage) -> bytes:
        """Returns the bytes that protobuf would write for the message.

        Raises:
            TypeError: It has a spec, and such messages have none.
        """
        chunk, crc = message.chunk, message.chunk_crc32c.to_bytes(4, "little")
        parts = (self._chunk_tag, _varint(len(chunk)), chunk, self._crc_tag, crc)
        return b"".join(parts if message.spec is None else (self._encode_spec(message.spec), *parts))

    def _encode_spec(self, spec: Any) -> bytes:
        if self._spec_tag is None:
            raise TypeError("only the first message of an upload has a spec")
        data: bytes = spec.SerializeToString()
        return self._spec_tag + _varint(len(data)) + data

    def decode(self, data: bytes, begin: int = 0) -> ChunkMessage | None:
        """Decodes a message from where its chunk begins; returns None if protobuf has to decode it."""
        if not data.startswith(self._chunk_tag, begin):
            return None
        size, start = _read_varint(data, begin + 1)
        end = start + size
        if start == 0 or len(data) != end + 5 or data[end : end + 1] != self._crc_tag:
            return None
        return ChunkMessage(data[start:end], int.from_bytes(data[end + 1 :], "little"))

    def serializer(self, fallback: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        """Returns a serializer that encodes chunk messages, and calls the fallback for all others."""
        return lambda message: self.encode(message) if isinstance(message, ChunkMessage) else fallback(message)

    def deserializer(self, fallback: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Returns a deserializer that decodes chunk messages, and calls the fallback for all others."""

        def deserialize(data: bytes) -> Any:
            begin = self._spec_end(data)
            message = self.decode(data, begin)
            if message is None:
                return fallback(data)
            return message._replace(spec=fallback(data[:begin]).spec) if begin else message

        return deserialize

    def _spec_end(self, data: bytes) -> int:
        """Returns where the spec that a message begins with ends; 0 if it begins with none."""
        if self._spec_tag is None or not data.startswith(self._spec_tag):
            return 0
        size, start = _read_varint(data, 1)
        return start and start + size


def upload_codec(method: MethodDescriptor) -> ChunkCodec | None:
    """Returns the codec for a method's requests; None unless they are a stream of chunks."""
    return _codec(method.input_type) if method.client_streaming and not method.server_streaming else None


def download_codec(method: MethodDescriptor) -> ChunkCodec | None:
    """Returns the codec for a method's responses; None unless they are a stream of chunks."""
    return _codec(method.output_type) if method.server_streaming and not method.client_streaming else None


def _codec(message_type: Descriptor) -> ChunkCodec | None:
    return ChunkCodec(message_type) if CHUNK_FIELDS.issubset(message_type.fields_by_name) else None


def _tag(field: FieldDescriptor, wire_type: int) -> bytes:
    return bytes([field.number << 3 | wire_type])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Returns a number of up to 28 bits and the position behind it; 0, 0 if there is none."""
    number = 0
    for index, byte in enumerate(data[start : start + 4]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, start + index + 1
    return 0, 0


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
