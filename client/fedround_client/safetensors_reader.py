"""A safetensors file that is parsed while it is received."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fedround_client.safetensors_header import (
    DTYPE_NAMES,
    PREFIX,
    HeaderError,
    TensorInfo,
    header_length,
    is_torch_file,
    read_header,
)
from fedround_client.tensor_types import Framework, TensorError

TORCH_ONLY = frozenset({"BF16", "F8_E4M3", "F8_E5M2"})
"""The dtypes that numpy does not have."""


class SafetensorsReader:
    """Parses a safetensors file from pieces of any size, and copies the data directly into the tensors' memory.

    Attributes:
        framework: The framework of the tensors; None until the header is read, if the file decides.
    """

    def __init__(self, framework: Framework | None = "numpy") -> None:
        """Creates a reader that has read nothing.

        Args:
            framework: "numpy" for arrays, "torch" for tensors on the CPU. None for tensors if the file says that it has
                those of torch and the caller has imported torch, else arrays.
        """
        self.framework = framework
        self._header = bytearray()
        self._header_end = PREFIX
        # Tensors whose data has not begun, the next one last; None until the header is complete.
        self._pending: list[TensorInfo] | None = None
        self._tensors: dict[str, Any] = {}
        # What is left to fill of the current tensor.
        self._target = memoryview(b"")
        self._error: Exception | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Accepts the next bytes of the file.

        Errors are raised by `tensors` only: first the caller may want to know whether the bytes were damaged.
        """
        rest = memoryview(data)
        if self._error is None:
            try:
                while len(rest):
                    rest = self._consume(rest)
            except (HeaderError, TensorError) as error:
                self._error, self._tensors, self._target = error, {}, memoryview(b"")
        return len(data)

    def tensors(self) -> dict[str, Any]:
        """Returns the tensors of a file that was written completely.

        Raises:
            TensorError: The bytes are not a safetensors file, or have a dtype that numpy does not have
                (bfloat16, float8).
        """
        try:
            if self._error is None and not self._is_complete():
                raise HeaderError("it ends early")
            if self._error is not None:
                raise self._error
        except HeaderError as error:
            raise TensorError(f"This is not a safetensors file: {error}") from error
        return self._tensors

    def _is_complete(self) -> bool:
        # Tensors without elements have no data that would begin them.
        while self._pending and not len(self._target):
            self._begin_tensor(self._pending)
        return self._pending is not None and not self._pending and not len(self._target)

    def _consume(self, data: memoryview) -> memoryview:
        """Consumes the part of the data that belongs to the header or to one tensor; returns the rest."""
        if self._pending is None:
            missing = self._header_end - len(self._header)
            self._header += data[:missing]
            if len(self._header) == self._header_end:
                self._read_header()
            return data[missing:]
        if not len(self._target):
            if not self._pending:
                raise HeaderError("it has bytes behind its last tensor")
            self._begin_tensor(self._pending)
        length = min(len(data), len(self._target))
        self._target[:length] = data[:length]
        self._target = self._target[length:]
        return data[length:]

    def _read_header(self) -> None:
        if self._header_end == PREFIX:
            self._header_end += header_length(bytes(self._header))
        if len(self._header) == self._header_end:
            text = bytes(self._header[PREFIX:])
            self._pending = read_header(text)[::-1]
            if self.framework is None:
                self.framework = "torch" if "torch" in sys.modules and is_torch_file(text) else "numpy"
            self._header.clear()

    def _begin_tensor(self, pending: list[TensorInfo]) -> None:
        info = pending.pop()
        allocate = _new_tensor if self.framework == "torch" else _new_array
        try:
            self._tensors[info.name], self._target = allocate(info)
        except TensorError:
            raise
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise TensorError(f"Tensor {info.name!r} does not fit into memory: {error}") from error


def _new_array(info: TensorInfo) -> tuple[Any, memoryview]:
    """Returns an array with the shape and dtype of the tensor, and its memory as bytes."""
    if info.dtype in TORCH_ONLY:
        raise TensorError(
            f"numpy has no dtype {info.dtype}, which tensor {info.name!r} has: read this model with"
            ' framework="torch" (and torch installed).'
        )
    array = np.empty(info.shape, np.dtype(DTYPE_NAMES[info.dtype]).newbyteorder("<"))
    return array, array.reshape(-1).view(np.uint8).data


def _new_tensor(info: TensorInfo) -> tuple[Any, memoryview]:
    """Returns a tensor with the shape and dtype of the tensor, and its memory as bytes."""
    import torch

    tensor = torch.empty(info.shape, dtype=getattr(torch, DTYPE_NAMES[info.dtype]), device="cpu")
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy().data
