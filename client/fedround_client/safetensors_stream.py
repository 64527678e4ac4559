"""A safetensors file as a stream of bytes, produced from tensors without a copy of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

from fedround_client.safetensors_header import CACHED_BYTES, TensorInfo, data_order, write_header
from fedround_client.tensor_types import TensorError

ENTRY_BYTES = 100
"""About how many bytes a header has for each tensor, beside its name."""


class TensorSource(Protocol):
    """A tensor whose data can be read from any offset."""

    @property
    def info(self) -> TensorInfo:
        """Name, dtype and shape."""

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """Yields the data from an offset in bytes; always the same data."""


class ArraySource(NamedTuple):
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
        given = list(tensors)
        plan = _plan(tuple(tensor.info for tensor in given), tuple((metadata or {}).items()))
        self._tensors = [given[index] for index in plan.order]
        self._header, self._sizes = plan.header, plan.sizes
        self.size_bytes = len(plan.header) + sum(plan.sizes)

    def pieces(self, offset: int = 0) -> Iterator[memoryview]:
        """Yields the bytes of the file from an offset: the header, then tensor by tensor.

        A caller that drops each piece before it asks for the next one holds at most one copy of a tensor.
        """
        if offset < len(self._header):
            yield memoryview(self._header)[offset:]
        position = len(self._header)
        for tensor, size in zip(self._tensors, self._sizes, strict=True):
            end = position + size
            if end > offset:
                yield from tensor.pieces(max(0, offset - position))
            position = end


class _Plan(NamedTuple):
    """What a file that has certain tensors begins with, and the order of its data.

    Attributes:
        order: Indices of the tensors in the order of their data.
        sizes: Their sizes in bytes, in that order.
        header: The bytes in front of the data.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    header: bytes


def _plan(infos: tuple[TensorInfo, ...], metadata: tuple[tuple[str, str], ...]) -> _Plan:
    """Returns the plan of a file; that of a small header is kept, since all updates of a training have the same one.

    Raises:
        TensorError: A name cannot be encoded as UTF-8.
    """
    is_small = sum(len(info.name) + ENTRY_BYTES for info in infos) <= CACHED_BYTES
    return _cached_plan(infos, metadata) if is_small else _make_plan(infos, metadata)


def _make_plan(infos: tuple[TensorInfo, ...], metadata: tuple[tuple[str, str], ...]) -> _Plan:
    order = sorted(range(len(infos)), key=lambda index: data_order(infos[index]))
    try:
        header = write_header((infos[index] for index in order), dict(metadata))
    except UnicodeEncodeError as error:
        raise TensorError(f"The name {error.object!r} has characters that UTF-8 does not have.") from error
    return _Plan(tuple(order), tuple(infos[index].num_bytes for index in order), header)


_cached_plan = lru_cache(maxsize=4)(_make_plan)
