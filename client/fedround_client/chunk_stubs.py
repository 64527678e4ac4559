"""Has the chunks of files written and read without protobuf's copies."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message_factory import GetMessageClass

from fedround_wire.chunk_codec import download_codec, upload_codec

Stub = TypeVar("Stub")


def with_chunk_codec(stub: Stub, channel: grpc.Channel, file: FileDescriptor) -> Stub:
    """Has the streams of files of a stub written and read by frames, and returns the stub.

    Args:
        stub: A generated stub.
        channel: The channel that it was made with.
        file: Describes its service, the only one of its file.
    """
    (service,) = file.services_by_name.values()
    for method in service.methods:
        name = f"/{service.full_name}/{method.name}"
        serializer: Any = GetMessageClass(method.input_type).SerializeToString
        deserializer: Any = GetMessageClass(method.output_type).FromString
        if (codec := upload_codec(method)) is not None:
            serializer = codec.writing(serializer)
            setattr(stub, method.name, channel.stream_unary(name, serializer, deserializer))
        elif (codec := download_codec(method)) is not None:
            deserializer = codec.reading(deserializer)
            setattr(stub, method.name, channel.unary_stream(name, serializer, deserializer))
    return stub
