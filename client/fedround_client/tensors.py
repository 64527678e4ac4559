"""State dicts to safetensors and back, in memory once. torch is used only if the caller has imported it already."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from fedround_client.safetensors_header import (
    NAMES,
    PREFIX,
    HeaderError,
    TensorInfo,
    data_order,
    header_length,
    read_header,
    write_header,
)

if TYPE_CHECKING:
    import torch

StateDict: TypeAlias = Mapping[str, Any]
"""Tensors by name: numpy arrays, torch tensors, or some of each."""

Framework: TypeAlias = Literal["numpy", "torch"]

DTYPES = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"})
"""What the server takes; bfloat16 from torch only, as numpy has no such type."""

_BY_NAME = {name: dtype for dtype, name in NAMES.items()}


class TensorError(ValueError):
    """A state dict that cannot be written as a model file, or a file that cannot be read as one."""


class TensorSource(Protocol):
    """A tensor to be written."""

    @property
    def described(self) -> TensorInfo:
        """Its name, type and shape."""

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """Yields its bytes from an offset on, the same ones each time."""


@dataclass(frozen=True)
class ArraySource:
    """A tensor to be written as it is.

    Attributes:
        memory: Gives its bytes, flat: those of the tensor itself, or of a copy if they do not lie in a row.
    """

    described: TensorInfo
    memory: Callable[[], memoryview]

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """Yields all in one."""
        yield self.memory()[offset:]


class SafetensorsStream:
    """A safetensors file that is never made: its bytes are those of its tensors."""

    def __init__(self, tensors: Iterable[TensorSource]) -> None:
        """Puts tensors into order.

        Raises:
            TensorError: A name cannot be written.
        """
        self._tensors = sorted(tensors, key=lambda one: data_order(one.described))
        try:
            self._header = write_header(tensor.described for tensor in self._tensors)
        except UnicodeEncodeError as error:
            raise TensorError(f"The name {error.object!r} has characters that UTF-8 does not have.") from error
        self.size_bytes = len(self._header) + sum(tensor.described.num_bytes for tensor in self._tensors)

    def pieces(self, offset: int = 0) -> Iterator[memoryview]:
        """Yields what lies behind an offset, in bytes: the header, and tensor by tensor.

        Whoever lets go of a piece before the next one holds one copy at most.
        """
        if offset < len(self._header):
            yield memoryview(self._header)[offset:]
        position = len(self._header)
        for tensor in self._tensors:
            end = position + tensor.described.num_bytes
            if end > offset:
                yield from tensor.pieces(max(0, offset - position))
            position = end


class SafetensorsReader:
    """A safetensors file that arrives in pieces, each of which goes to its place in the memory of a tensor."""

    def __init__(self, framework: Framework = "numpy") -> None:
        """Begins before the first byte.

        Args:
            framework: "numpy" for arrays, "torch" for tensors on the CPU.
        """
        self._make = _new_tensor if framework == "torch" else _new_array
        self._header = bytearray()
        self._wanted = PREFIX
        # Those still to come, the next one last.
        self._described: list[TensorInfo] = []
        self._is_described = False
        self._found: dict[str, Any] = {}
        self._target = memoryview(bytearray())
        self._problem: Exception | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Takes the next bytes; what is wrong with them is told by `tensors`, when they are known not to be damaged."""
        rest = memoryview(data)
        if self._problem is None:
            try:
                while len(rest):
                    rest = self._take(rest)
            except (HeaderError, TensorError) as error:
                self._problem, self._found, self._target = error, {}, memoryview(b"")
        return len(data)

    def tensors(self) -> dict[str, Any]:
        """Returns the tensors.

        Raises:
            TensorError: The bytes are no safetensors file, or hold a dtype that numpy does not have (bfloat16).
        """
        try:
            if self._problem is None and not self._is_whole():
                raise HeaderError("it ends early")
            if self._problem is not None:
                raise self._problem
        except HeaderError as error:
            raise TensorError(f"This is not a safetensors file: {error}") from error
        return self._found

    def _is_whole(self) -> bool:
        while self._described and not len(self._target):
            self._begin_tensor()
        return self._is_described and not self._described and not len(self._target)

    def _take(self, data: memoryview) -> memoryview:
        """Takes what belongs together; returns the rest."""
        if not self._is_described:
            missing = self._wanted - len(self._header)
            self._header += data[:missing]
            if len(self._header) == self._wanted:
                self._read_header()
            return data[missing:]
        if not len(self._target):
            if not self._described:
                raise HeaderError("it goes on behind its last tensor")
            self._begin_tensor()
        length = min(len(data), len(self._target))
        self._target[:length] = data[:length]
        self._target = self._target[length:]
        return data[length:]

    def _read_header(self) -> None:
        if self._wanted == PREFIX:
            self._wanted += header_length(bytes(self._header))
        if len(self._header) == self._wanted:
            self._described = read_header(bytes(self._header[PREFIX:]))[::-1]
            self._is_described = True
            self._header.clear()

    def _begin_tensor(self) -> None:
        described = self._described.pop()
        try:
            self._found[described.name], self._target = self._make(described)
        except TensorError:
            raise
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise TensorError(f"Tensor {described.name!r} does not fit into memory: {error}") from error


def array_sources(state: StateDict) -> list[ArraySource]:
    """Looks at a state dict that is to be written, and copies nothing.

    Raises:
        TensorError: The dict is empty, or something in it is no such tensor; the text names it.
    """
    if not state:
        raise TensorError("The state dict is empty: a model has at least one tensor.")
    return [_array_source(name, value) for name, value in state.items()]


def to_safetensors(state: StateDict) -> bytes:
    """Writes a state dict as a safetensors file.

    Args:
        state: Arrays or tensors by name, of any shape but with at least one element, of a dtype in DTYPES, on any
            device, contiguous or not, of either byte order. Tensors that share memory are written one by one.

    Returns:
        The file. Nothing but names, shapes, dtypes and values goes into it.

    Raises:
        TensorError: The dict is empty, or something in it is no such tensor; the text names it.
    """
    file = io.BytesIO()
    for piece in SafetensorsStream(array_sources(state)).pieces():
        file.write(piece)
        del piece
    return file.getvalue()


def from_safetensors(data: bytes, framework: Framework = "numpy") -> dict[str, Any]:
    """Reads a safetensors file.

    Args:
        data: The file.
        framework: "numpy" for arrays, "torch" for tensors on the CPU.

    Returns:
        Writable np.ndarray or torch.Tensor by name, with the shapes and dtypes of the file.

    Raises:
        TensorError: The bytes are no safetensors, or hold a dtype that numpy does not have (bfloat16).
    """
    arrival = SafetensorsReader(framework)
    arrival.write(data)
    return arrival.tensors()


def copied(state: StateDict, framework: Framework) -> dict[str, Any]:
    """Copies a state dict, into the memory of arrays or tensors.

    Raises:
        TensorError: As to_safetensors and from_safetensors.
    """
    arrival = SafetensorsReader(framework)
    for piece in SafetensorsStream(array_sources(state)).pieces():
        arrival.write(piece)
        del piece
    return arrival.tensors()


def floating(state: StateDict) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Gives the floating tensors of a state dict, which are what is averaged, as float64 arrays.

    Raises:
        TensorError: Something in it is no tensor; the text names it.
    """
    torch = sys.modules.get("torch")
    found = {}
    for name, value in state.items():
        plain = value
        if torch is not None and isinstance(value, torch.Tensor):
            if not value.is_floating_point():
                continue
            plain = value.detach().cpu().to(torch.float64).numpy()
        array = _an_array(name, plain)
        _checked(name, array.dtype.name, array.size)
        if np.issubdtype(array.dtype, np.floating):
            found[name] = np.asarray(array, np.float64)
    return found


def _array_source(name: object, value: object) -> ArraySource:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dtype = _checked_tensor(name, value, torch)
        return ArraySource(TensorInfo(str(name), dtype, tuple(value.shape)), lambda: _tensor_memory(value, torch))
    array = _an_array(name, value)
    dtype = _checked(name, array.dtype.name, array.size)
    return ArraySource(TensorInfo(str(name), dtype, array.shape), lambda: _array_memory(array))


def _an_array(name: object, value: object) -> np.ndarray[Any, np.dtype[Any]]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TensorError(f"{name!r} is a {type(value).__name__}, neither a numpy array nor a torch tensor.")
    return np.asarray(value)


def _checked_tensor(name: object, value: torch.Tensor, torch: Any) -> str:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise TensorError(f"Tensor {name!r} is sparse, quantised or without data; a model has dense tensors.")
    return _checked(name, str(value.dtype).removeprefix("torch."), value.numel())


def _checked(name: object, dtype: str, size: int) -> str:
    if not isinstance(name, str):
        raise TensorError(f"The key {name!r} is not a string: the names of a state dict are strings.")
    if dtype not in DTYPES:
        raise TensorError(f"Tensor {name!r} has the dtype {dtype}; a model may have {', '.join(sorted(DTYPES))}.")
    if size == 0:
        raise TensorError(f"Tensor {name!r} is empty; leave it out of the model.")
    return _BY_NAME[dtype]


def _array_memory(array: np.ndarray[Any, np.dtype[Any]]) -> memoryview:
    # asarray, unlike ascontiguousarray, leaves a scalar's shape at ().
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return little.reshape(-1).view(np.uint8).data


def _tensor_memory(value: torch.Tensor, torch: Any) -> memoryview:
    plain = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
    flat: np.ndarray[Any, np.dtype[np.uint8]] = plain.reshape(-1).view(torch.uint8).numpy()
    return flat.data


def _new_array(described: TensorInfo) -> tuple[Any, memoryview]:
    if described.dtype == "BF16":
        raise TensorError('numpy has no dtype BF16: read this model with framework="torch" (and torch installed).')
    array = np.empty(described.shape, np.dtype(NAMES[described.dtype]).newbyteorder("<"))
    return array, array.reshape(-1).view(np.uint8).data


def _new_tensor(described: TensorInfo) -> tuple[Any, memoryview]:
    import torch

    tensor = torch.empty(described.shape, dtype=getattr(torch, NAMES[described.dtype]), device="cpu")
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy().data
