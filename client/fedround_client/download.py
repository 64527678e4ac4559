"""Downloads of model files in chunks, which resume after a lost connection and are verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import google_crc32c
import grpc

from fedround.v1.event_pb2 import Compression, ModelInfo
from fedround_client.compression import CompressionError, decompress
from fedround_client.errors import ChunkCorrupt, DigestMismatch, ServerUnavailable
from fedround_client.payload import Progress
from fedround_client.retry import ATTEMPTS
from fedround_client.rpc import Rpc

Request = TypeVar("Request")
Response = TypeVar("Response", bound="_Response")


class _Response(Protocol):
    """A message of a download."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def chunk(self) -> bytes: ...
    @property
    def chunk_crc32c(self) -> int: ...
    @property
    def compression(self) -> Compression.ValueType: ...
    def HasField(self, name: Literal["info"], /) -> bool: ...  # noqa: N802 -- protobuf's name


class Sink(Protocol):
    """Receives the bytes of a download."""

    def write(self, data: bytes, /) -> object:
        """Appends bytes."""


@dataclass(frozen=True)
class Tee:
    """A sink that writes to two sinks."""

    first: Sink
    second: Sink

    def write(self, data: bytes, /) -> None:
        """Writes the bytes to both sinks."""
        self.first.write(data)
        self.second.write(data)


def download(
    rpc: Rpc,
    method: grpc.UnaryStreamMultiCallable[Request, Response],
    request: Callable[[int, ModelInfo | None], Request],
    sink: Sink,
    *,
    have: str = "",
    attempts: int | None = ATTEMPTS,
    progress: Progress | None = None,
) -> ModelInfo:
    """Fetches a model file. After a lost connection or a damaged chunk it continues behind the last good byte.

    Args:
        rpc: Calls the server.
        method: The server-streaming method.
        request: Returns the request of a stream that starts at an offset in bytes; also gets the info of the bytes
            received so far, None before the first one.
        sink: Receives the bytes.
        have: SHA-256 of a file that the caller has: if the server has the same one, nothing is fetched.
        attempts: How many attempts in a row may fail without progress; None for any number.
        progress: Called after every chunk.

    Returns:
        The info of the file. The bytes written have its size and its SHA-256, unless the SHA-256 is `have`.

    Raises:
        DigestMismatch: The bytes do not have the announced digest, or there are more than announced.
        FedroundError: The server answered with an error that is not transient, or the last attempt failed.
    """
    received = _Received(sink, progress)
    for attempt in rpc.retrying(attempts):
        with attempt, rpc.traces.span("download"):
            rpc.traces.set("offset", received.size)
            stream = rpc.open(method, request(received.size, received.info))
            try:
                for response in rpc.read(stream):
                    if response.HasField("info"):
                        received.info = response.info
                        if have and response.info.sha256 == have:
                            return response.info
                    if received.add_chunk_of(response):
                        attempt.retry_state.attempt_number = 1
            finally:
                stream.cancel()
            info = received.info
            if info is None or received.size < info.size_bytes:
                raise ServerUnavailable(
                    grpc.StatusCode.UNAVAILABLE,
                    "UNAVAILABLE",
                    f"The download ended early, after {received.size} bytes.",
                )
    return received.verified()


class _Received:
    """The bytes received so far.

    Attributes:
        info: What the server announced; None before it did.
        size: How many bytes were received.
    """

    def __init__(self, sink: Sink, progress: Progress | None) -> None:
        self.info: ModelInfo | None = None
        self.size = 0
        self._sink = sink
        self._progress = progress
        self._digest = hashlib.sha256()

    def add_chunk_of(self, response: _Response) -> bool:
        """Checks and writes the chunk of a message; returns whether it has one.

        Raises:
            ChunkCorrupt: The chunk was damaged in transit.
            DigestMismatch: There are more bytes than announced.
        """
        # Read once: protobuf copies the field each time.
        data = response.chunk
        if not data:
            return False
        try:
            chunk = decompress(data, response.compression)
        except CompressionError as error:
            raise self._corrupt(len(data)) from error
        # Without this check a server could send bytes without end.
        if self.info is None or self.size + len(chunk) > self.info.size_bytes:
            announced = "none were announced" if self.info is None else f"{self.info.size_bytes} were announced"
            raise _mismatch(f"The server sends more bytes than it announced: {announced}.")
        if response.chunk_crc32c != google_crc32c.value(chunk):
            raise self._corrupt(len(chunk))
        self._sink.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)
        if self._progress is not None:
            self._progress(self.size, self.info.size_bytes)
        return True

    def verified(self) -> ModelInfo:
        """Returns the info of the file, once it is complete.

        Raises:
            DigestMismatch: The bytes do not have the announced digest.
        """
        if self.info is None:
            raise AssertionError("unreachable: a complete download has an info")
        digest = self._digest.hexdigest()
        # What does not exist has neither a size nor a digest.
        if digest != self.info.sha256 and (self.info.sha256 or self.size):
            model = f"Model {self.info.model_id} version {self.info.version}"
            raise _mismatch(f"{model} arrived with SHA-256 {digest}, not {self.info.sha256}.")
        return self.info

    def _corrupt(self, size: int) -> ChunkCorrupt:
        message = f"The {size} bytes from offset {self.size} were damaged in transit."
        return ChunkCorrupt(grpc.StatusCode.DATA_LOSS, "CHUNK_CORRUPT", message, {"offset": str(self.size)})


def _mismatch(message: str) -> DigestMismatch:
    return DigestMismatch(grpc.StatusCode.DATA_LOSS, "DIGEST_MISMATCH", message)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hex; empty if the file does not exist.

    Raises:
        OSError: The file cannot be read.
    """
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
