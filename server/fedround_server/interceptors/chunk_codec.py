"""Encodes and decodes the chunks of files without the copies that protobuf makes, and counts their bytes.

Events come encoded: each is encoded once for all its subscribers.
"""

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from fedround_server.counters import Counters
from fedround_server.interceptors.wrapping import Handler, WrappingInterceptor, rebuild
from fedround_wire.chunk_codec import ChunkCodec, download_codec, upload_codec

EVENT = "fedround.v1.Event"


class ChunkCodecInterceptor(WrappingInterceptor):
    """Gives the methods that stream files or events a codec of their own."""

    def __init__(self, services: Iterable[ServiceDescriptor], counters: Counters) -> None:
        """Finds the methods of all services whose messages carry chunks, or are events."""
        self._counters = counters
        self.uploads: dict[str, ChunkCodec] = {}
        self.downloads: dict[str, ChunkCodec] = {}
        self.events: set[str] = set()
        for service in services:
            for method in service.methods:
                name = f"/{service.full_name}/{method.name}"
                if (codec := upload_codec(method)) is not None:
                    self.uploads[name] = codec
                if (codec := download_codec(method)) is not None:
                    self.downloads[name] = codec
                if method.output_type.full_name == EVENT:
                    self.events.add(name)

    def concerns(self, method: str) -> bool:
        """Returns whether a method's messages carry chunks, or are events."""
        return method in self.uploads or method in self.downloads or method in self.events

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns a handler that tries the codec before protobuf."""
        deserializer: Any = handler.request_deserializer
        serializer: Any = handler.response_serializer
        if method in self.uploads:
            deserializer = self._receiving(self.uploads[method].deserializer(deserializer))
        if method in self.downloads:
            serializer = self._sending(self.downloads[method].serializer(serializer))
        if method in self.events:
            serializer = None
        return rebuild(handler, lambda inner: inner, deserializer, serializer)

    def _receiving(self, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def counted(data: bytes) -> Any:
            message = deserialize(data)
            self._counters.received_bytes += len(message.chunk)
            return message

        return counted

    def _sending(self, serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def counted(message: Any) -> bytes:
            self._counters.sent_bytes += len(message.chunk)
            return serialize(message)

        return counted
