"""Model files on their way up and down.

They go in chunks, each with its CRC-32C, are resumed by offset after a cut, and verified by SHA-256.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import google_crc32c
import grpc

from fedround.v1.event_pb2 import PACKING_GZIP, PACKING_UNSPECIFIED, ModelInfo, Packing
from fedround.v1.round_pb2 import GetUploadRequest
from fedround_client.errors import ChunkCorrupt, DigestMismatch, FedroundError, ServerUnavailable
from fedround_client.rpc import ATTEMPTS, Rpc
from fedround_client.tensors import SafetensorsStream, StateDict, TensorSource, array_sources
from fedround_wire.chunk_codec import ChunkMessage

CHUNK = 3 * 2**18
MAX_CHUNK = 2**20
PACK_LEVEL = 1
"""Of zlib: higher ones save hardly more of weights, and take longer."""
# Of zlib: with the header and the checksum of gzip.
GZIP_BITS = 31

ModelSource: TypeAlias = StateDict | str | PathLike[str]
"""A state dict, or the path of a safetensors file."""

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes of how many are done; called from any thread."""

Request = TypeVar("Request")
Response = TypeVar("Response")
Piece = TypeVar("Piece", bound="_Piece")


class _Piece(Protocol):
    """A message of a download."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def chunk(self) -> bytes: ...
    @property
    def chunk_crc32c(self) -> int: ...
    @property
    def packing(self) -> Packing.ValueType: ...
    def HasField(self, name: Literal["info"], /) -> bool: ...  # noqa: N802 -- protobuf's name


class Sink(Protocol):
    """Where the bytes of a download go."""

    def write(self, data: bytes, /) -> object:
        """Takes the next bytes."""


@dataclass(frozen=True)
class Tee:
    """Two places at once."""

    first: Sink
    second: Sink

    def write(self, data: bytes, /) -> None:
        """Writes to both."""
        self.first.write(data)
        self.second.write(data)


@dataclass(frozen=True)
class Payload:
    """A file to be sent.

    Attributes:
        size_bytes: Its size.
        sha256: Its SHA-256 in hex.
    """

    size_bytes: int
    sha256: str
    _source: SafetensorsStream | Path | None

    @classmethod
    def of(cls, model: ModelSource) -> Payload:
        """Measures a state dict or a file, which must not change until it is sent; nothing is copied.

        Raises:
            TensorError: The state dict cannot be written as safetensors.
            OSError: The file cannot be read.
        """
        if isinstance(model, Mapping):
            return cls.of_tensors(array_sources(model))
        path = Path(model)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), digest, path)

    @classmethod
    def of_tensors(cls, tensors: Iterable[TensorSource]) -> Payload:
        """Measures tensors, which must not change until they are sent.

        Raises:
            TensorError: They cannot be written as safetensors.
        """
        file = SafetensorsStream(tensors)
        digest = hashlib.sha256()
        for piece in file.pieces():
            digest.update(piece)
            del piece
        return cls(file.size_bytes, digest.hexdigest(), file)

    @classmethod
    def nothing(cls) -> Payload:
        """Stands for no file."""
        return cls(0, "", None)

    def chunks(self, offset: int) -> Iterator[tuple[bytes, int]]:
        """Cuts what lies behind the offset into chunks, each with the position of its end, in bytes."""
        if isinstance(self._source, SafetensorsStream):
            for chunk in _cut(self._source.pieces(offset)):
                offset += len(chunk)
                yield chunk, offset
        elif self._source is not None:
            with self._source.open("rb") as file:
                file.seek(offset)
                while chunk := file.read(CHUNK):
                    yield chunk, file.tell()


def _cut(pieces: Iterator[memoryview]) -> Iterator[bytes]:
    """Cuts pieces of any size into chunks; those that lie inside of a piece are copied once, the others twice."""
    rest = bytearray()
    for piece in pieces:
        start = min(CHUNK - len(rest), len(piece)) if rest else 0
        rest += piece[:start]
        if len(rest) == CHUNK:
            yield bytes(rest)
            rest.clear()
        while len(piece) - start >= CHUNK:
            yield bytes(piece[start : start + CHUNK])
            start += CHUNK
        rest += piece[start:]
        # Else a copy would stay in memory while the next one is made.
        del piece
    if rest:
        yield bytes(rest)


def upload(
    rpc: Rpc,
    method: grpc.StreamUnaryMultiCallable[Request, Response],
    payload: Payload,
    upload_id: str,
    first: Callable[[int], Request],
    more: Callable[..., Request],
    *,
    attempts: int | None = ATTEMPTS,
    progress: Progress | None = None,
) -> Response:
    """Sends a file, and goes on from where the server got to whenever the connection is cut or bytes are damaged.

    Args:
        rpc: Calls the server.
        method: The client-streaming method, of a stub that takes frames.
        payload: The file.
        upload_id: UUID that the server knows the upload by; empty if there is nothing to go on with.
        first: Makes the first message of a stream that starts at an offset in bytes.
        more: Makes a message of chunk, chunk_crc32c and packing.
        attempts: How many in a row may fail without progress; None for any number.
        progress: Told of every chunk.

    Returns:
        The server's answer.

    Raises:
        FedroundError: The server refused, or the attempts are used up.
        Exception: What reading the file, or `progress`, raised.
    """
    failures: list[Exception] = []

    def messages(head: Request, offset: int) -> Iterator[Any]:
        try:
            yield head
            for chunk, end in payload.chunks(offset):
                packed, packing = _pack(chunk, rpc.packing)
                checksum = google_crc32c.value(chunk)
                # A frame stands for the message that `more` would make.
                yield (
                    more(chunk=packed, chunk_crc32c=checksum, packing=packing)
                    if packing
                    else ChunkMessage(packed, checksum)
                )
                if progress is not None:
                    progress(end, payload.size_bytes)
        except Exception as error:
            # gRPC makes a lost connection of what its request iterator raises, and nobody would hear of it.
            failures.append(error)
            raise

    committed, begun = 0, False
    for attempt in rpc.retrying(attempts):
        with attempt:
            if begun and upload_id:
                offset = rpc.unary(rpc.rounds.GetUpload, GetUploadRequest(upload_id=upload_id)).committed_size
                if offset > committed:
                    attempt.retry_state.attempt_number = 1
                committed = offset
            begun = True
            try:
                return rpc.send(method, messages(first(committed), committed))
            except FedroundError:
                if failures:
                    raise failures[0] from None
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def download(
    rpc: Rpc,
    method: grpc.UnaryStreamMultiCallable[Request, Piece],
    request: Callable[[int, ModelInfo | None], Request],
    sink: Sink,
    *,
    have: str = "",
    attempts: int | None = ATTEMPTS,
    progress: Progress | None = None,
) -> ModelInfo:
    """Fetches a model file, and goes on from the last good byte whenever the connection is cut or bytes are damaged.

    Args:
        rpc: Calls the server.
        method: The server-streaming method.
        request: Makes the request of a stream that starts at an offset in bytes; after a cut it is also told what the
            bytes so far belong to.
        sink: Where the bytes are written to.
        have: SHA-256 of a file that is here already: if it is the same one, nothing is fetched.
        attempts: How many in a row may fail without progress; None for any number.
        progress: Told of every chunk.

    Returns:
        What was fetched, or need not be; the bytes written have its size and its SHA-256.

    Raises:
        DigestMismatch: The bytes do not have the digest that the server told, or are more than it told.
        FedroundError: The server refused, or the attempts are used up.
    """
    digest = hashlib.sha256()
    info: ModelInfo | None = None
    received = 0
    for attempt in rpc.retrying(attempts):
        with attempt, rpc.typed_errors():
            stream = rpc.open(method, request(received, info))
            try:
                for response in stream:
                    if response.HasField("info"):
                        info = response.info
                        if have and info.sha256 == have:
                            return info
                    # Once: each look at the field makes a copy.
                    if sent := response.chunk:
                        chunk = _unpack(sent, response.packing, received)
                        if info is None or received + len(chunk) > info.size_bytes:
                            raise _surplus(info)
                        if response.chunk_crc32c != google_crc32c.value(chunk):
                            raise _corrupt(len(chunk), received)
                        sink.write(chunk)
                        digest.update(chunk)
                        received += len(chunk)
                        attempt.retry_state.attempt_number = 1
                        if progress is not None:
                            progress(received, info.size_bytes)
            finally:
                stream.cancel()
            if info is None or received < info.size_bytes:
                raise ServerUnavailable(
                    grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", f"The download ended early, after {received} bytes."
                )
    if info is None:
        raise AssertionError("unreachable: the last attempt has an info or raises")
    if digest.hexdigest() != info.sha256:
        raise DigestMismatch(
            grpc.StatusCode.DATA_LOSS,
            "DIGEST_MISMATCH",
            f"Model {info.model_id} version {info.version} arrived with SHA-256 {digest.hexdigest()},"
            f" not {info.sha256}.",
        )
    return info


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hex; empty if there is none.

    Raises:
        OSError: It cannot be read.
    """
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _corrupt(size: int, offset: int) -> ChunkCorrupt:
    return ChunkCorrupt(
        grpc.StatusCode.DATA_LOSS,
        "CHUNK_CORRUPT",
        f"The {size} bytes from offset {offset} were damaged on the way.",
        {"offset": str(offset)},
    )


def _pack(chunk: bytes, packing: Packing.ValueType) -> tuple[bytes, Packing.ValueType]:
    """Packs a chunk if that is asked for and makes it smaller; returns also how it is packed."""
    if packing == PACKING_GZIP:
        packed = zlib.compress(chunk, PACK_LEVEL, GZIP_BITS)
        if len(packed) < len(chunk):
            return packed, packing
    return chunk, PACKING_UNSPECIFIED


def _unpack(sent: bytes, packing: Packing.ValueType, offset: int) -> bytes:
    """Returns the bytes of the file that a message carries, and never more than a chunk may have."""
    if packing == PACKING_UNSPECIFIED:
        return sent
    unpacking = zlib.decompressobj(GZIP_BITS)
    try:
        chunk = unpacking.decompress(sent, MAX_CHUNK + 1)
    except zlib.error as error:
        raise _corrupt(len(sent), offset) from error
    if len(chunk) > MAX_CHUNK or not unpacking.eof or unpacking.unused_data:
        raise _corrupt(len(sent), offset)
    return chunk


def _surplus(info: ModelInfo | None) -> DigestMismatch:
    """The refusal of bytes that nobody announced: there may be no end of them."""
    announced = "none were announced" if info is None else f"{info.size_bytes} were announced"
    message = f"The server sends more bytes than it told: {announced}."
    return DigestMismatch(grpc.StatusCode.DATA_LOSS, "DIGEST_MISMATCH", message)
