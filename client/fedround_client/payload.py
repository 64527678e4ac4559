"""Model files that are sent: what they consist of, their size and digest, and their chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from fedround_client.safetensors_stream import SafetensorsStream, TensorSource
from fedround_client.state_dict import model_path
from fedround_client.tensor_types import StateDict
from fedround_client.tensors import array_sources, metadata_of

CHUNK = 3 * 2**18
"""Bytes of a chunk that the client sends."""

SMALL_FILE = 2 * CHUNK
"""Size up to which the file of a state dict is written into memory, and so hashed at once."""

Chunk: TypeAlias = bytes | memoryview
"""Bytes to send: a copy, or the memory of a tensor."""

ModelSource: TypeAlias = StateDict | str | PathLike[str]
"""A state dict, or the path of a safetensors file."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes transferred so far and the bytes in all, from any thread."""


@dataclass(frozen=True)
class Payload:
    """A file to send.

    Attributes:
        size_bytes: Its size.
        sha256: Its SHA-256 in hex.
    """

    size_bytes: int
    sha256: str
    _source: SafetensorsStream | Path | bytes

    @classmethod
    def of(cls, model: ModelSource, *, names_framework: bool = False) -> Payload:
        """Returns the payload of a state dict or a file, which must not change until it is sent.

        Only a state dict of at most SMALL_FILE bytes is copied.

        With names_framework, the file of a state dict of torch tensors says in its metadata that it is one.

        Raises:
            TensorError: It is neither, or the state dict cannot be written as safetensors.
            OSError: The file cannot be read.
        """
        if not isinstance(model, (str, PathLike)):
            sources = array_sources(model)
            return cls.of_tensors(sources, metadata_of(model) if names_framework else {})
        path = model_path(model)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), digest, path)

    @classmethod
    def of_tensors(cls, tensors: Iterable[TensorSource], metadata: Mapping[str, str] | None = None) -> Payload:
        """Returns the payload of tensors, which must not change until they are sent, with metadata if there is any.

        Raises:
            TensorError: They cannot be written as safetensors.
        """
        stream = SafetensorsStream(tensors, metadata)
        if stream.size_bytes <= SMALL_FILE:
            file = b"".join(stream.pieces())
            return cls(stream.size_bytes, hashlib.sha256(file).hexdigest(), file)
        digest = hashlib.sha256()
        for piece in stream.pieces():
            digest.update(piece)
            del piece
        return cls(stream.size_bytes, digest.hexdigest(), stream)

    @classmethod
    def empty(cls) -> Payload:
        """Returns the payload of a request that carries no file."""
        return cls(0, "", b"")

    def rest(self, offset: int, limit: int) -> bytes | None:
        """Returns the bytes from an offset on; None if they are more than a limit, or not in memory already."""
        if self.size_bytes - offset > limit or not isinstance(self._source, bytes):
            return None
        return self._source[offset:]

    def chunks(self, offset: int) -> Iterator[tuple[Chunk, int]]:
        """Yields the chunks from an offset on, each with the offset of its end, in bytes."""
        if isinstance(self._source, bytes):
            for start in range(offset, self.size_bytes, CHUNK):
                end = min(start + CHUNK, self.size_bytes)
                yield self._source[start:end], end
        elif isinstance(self._source, SafetensorsStream):
            for chunk in _chunks(self._source.pieces(offset)):
                offset += len(chunk)
                yield chunk, offset
        else:
            with self._source.open("rb") as file:
                file.seek(offset)
                while chunk := file.read(CHUNK):
                    yield chunk, file.tell()


def _chunks(pieces: Iterator[memoryview]) -> Iterator[Chunk]:
    """Regroups pieces of any size into chunks. Nearly all chunks within one piece are its memory, and not copied."""
    rest = bytearray()
    for piece in pieces:
        start = min(CHUNK - len(rest), len(piece)) if rest else 0
        rest += piece[:start]
        if len(rest) == CHUNK:
            yield bytes(rest)
            rest.clear()
        while len(piece) - start >= 2 * CHUNK:
            yield piece[start : start + CHUNK]
            start += CHUNK
        if len(piece) - start >= CHUNK:
            # The last one is copied: who holds it while the next tensor is copied must not hold this tensor as well.
            yield bytes(piece[start : start + CHUNK])
            start += CHUNK
        rest += piece[start:]
        # Otherwise a copied tensor would stay in memory while the next one is copied.
        del piece
    if rest:
        yield bytes(rest)
