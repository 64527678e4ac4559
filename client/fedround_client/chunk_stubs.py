"""Generated stubs whose file transfers use the chunk codec."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
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
        name, serializer, deserializer = _parts(method)
        if (codec := upload_codec(method)) is not None:
            setattr(stub, method.name, channel.stream_unary(name, codec.serializer(serializer), deserializer))
        elif (codec := download_codec(method)) is not None:
            setattr(stub, method.name, channel.unary_stream(name, serializer, codec.deserializer(deserializer)))
    return stub


def whole_upload(channel: grpc.Channel, method: MethodDescriptor) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
    """Returns a method that streams chunks as one that takes a single message, for files that fit in it.

    On the wire both are the same, and this one needs no thread that sends the messages.
    """
    name, serializer, deserializer = _parts(method)
    codec = upload_codec(method)
    return channel.unary_unary(name, codec.serializer(serializer) if codec else serializer, deserializer)


def _parts(method: MethodDescriptor) -> tuple[str, Any, Any]:
    """Returns the path of a method, its serializer and its deserializer."""
    requests, responses = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    return path, requests.SerializeToString, responses.FromString
