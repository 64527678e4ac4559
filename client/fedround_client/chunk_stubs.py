"""Generated stubs whose file transfers use the chunk codec."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message_factory import GetMessageClass

from fedround_wire.chunk_codec import download_codec, upload_codec

Stub = TypeVar("Stub")


def with_chunk_codec(stub: Stub, channel: grpc.Channel, file: FileDescriptor) -> Stub:
    """Replaces the methods of a stub that stream chunks by methods that use the chunk codec, and returns the stub.

    Args:
        stub: A generated stub.
        channel: The channel that the stub was created with.
        file: Descriptor of the file that defines the service, and no other one.
    """
    (service,) = file.services_by_name.values()
    for method in service.methods:
        name = f"/{service.full_name}/{method.name}"
        serializer: Any = GetMessageClass(method.input_type).SerializeToString
        deserializer: Any = GetMessageClass(method.output_type).FromString
        if (codec := upload_codec(method)) is not None:
            setattr(stub, method.name, channel.stream_unary(name, codec.serializer(serializer), deserializer))
        elif (codec := download_codec(method)) is not None:
            setattr(stub, method.name, channel.unary_stream(name, serializer, codec.deserializer(deserializer)))
    return stub
