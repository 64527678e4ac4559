"""Has the chunks of files written and read without protobuf's copies."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from fedround_server.interceptors.wrapping import Handler, WrappingInterceptor, rebuilt
from fedround_wire.frames import FrameCodec, download_codec, upload_codec


class ChunkCodecInterceptor(WrappingInterceptor):
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
                if (codec := upload_codec(method)) is not None:
                    self.uploads[name] = codec
                if (codec := download_codec(method)) is not None:
                    self.downloads[name] = codec

    def concerns(self, method: str) -> bool:
        """Tells whether a method's messages carry chunks."""
        return method in self.uploads or method in self.downloads

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Puts the codec in front of protobuf's."""
        deserializer: Any = handler.request_deserializer
        serializer: Any = handler.response_serializer
        if method in self.uploads:
            deserializer = self.uploads[method].reading(deserializer)
        if method in self.downloads:
            serializer = self.downloads[method].writing(serializer)
        return rebuilt(handler, lambda inner: inner, deserializer, serializer)
