"""A safetensors file as a stream of bytes, produced from tensors without a copy of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedround_client.safetensors_header import TensorInfo, data_order, write_header
from fedround_client.tensor_types import TensorError


class TensorSource(Protocol):
    """A tensor whose data can be read from any offset."""

    @property
    def info(self) -> TensorInfo:
        """Name, dtype and shape."""

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """Yields the data from an offset in bytes; always the same data."""


@dataclass(frozen=True)
class ArraySource:
    """A tensor whose data is in memory.

    Attributes:
        info: Name, dtype and shape.
        memory: Returns the data as flat bytes: the memory of the tensor itself, or a copy if it is not contiguous.
    """

    info: TensorInfo
    memory: Callable[[], memoryview]

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """Yields the data from an offset in bytes as one piece."""
        yield self.memory()[offset:]


class SafetensorsStream:
    """The bytes of a safetensors file that has certain tensors.

    Attributes:
        size_bytes: Size of the file.
    """

    def __init__(self, tensors: Iterable[TensorSource], metadata: Mapping[str, str] | None = None) -> None:
        """Sorts the tensors and writes the header, with metadata if there is any.

        Raises:
            TensorError: A name cannot be encoded as UTF-8.
        """
        self._tensors = sorted(tensors, key=lambda tensor: data_order(tensor.info))
        try:
            self._header = write_header((tensor.info for tensor in self._tensors), metadata)
        except UnicodeEncodeError as error:
            raise TensorError(f"The name {error.object!r} has characters that UTF-8 does not have.") from error
        self.size_bytes = len(self._header) + sum(tensor.info.num_bytes for tensor in self._tensors)

    def pieces(self, offset: int = 0) -> Iterator[memoryview]:
        """Yields the bytes of the file from an offset: the header, then tensor by tensor.

        A caller that drops each piece before it asks for the next one holds at most one copy of a tensor.
        """
        if offset < len(self._header):
            yield memoryview(self._header)[offset:]
        position = len(self._header)
        for tensor in self._tensors:
            end = position + tensor.info.num_bytes
            if end > offset:
                yield from tensor.pieces(max(0, offset - position))
            position = end
