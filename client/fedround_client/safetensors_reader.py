"""A safetensors file that is parsed while it is received."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from fedround_client.safetensors_header import CACHED_BYTES, PREFIX, HeaderError, header_length, read_header
from fedround_client.tensor_blocks import Block, allocate_arrays, allocate_tensors, divide
from fedround_client.tensor_types import Framework, TensorError


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
        # Blocks whose data has not begun, the next one last; None until the header is complete.
        self._pending: list[Block] | None = None
        self._tensors: dict[str, Any] = {}
        # What is left to fill of the current block.
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
            self._begin_block(self._pending)
        return self._pending is not None and not self._pending and not len(self._target)

    def _consume(self, data: memoryview) -> memoryview:
        """Consumes the part of the data that belongs to the header or to one block; returns the rest."""
        if self._pending is None:
            missing = self._header_end - len(self._header)
            self._header += data[:missing]
            if len(self._header) == self._header_end:
                self._read_header()
            return data[missing:]
        if not len(self._target):
            if not self._pending:
                raise HeaderError("it has bytes behind its last tensor")
            self._begin_block(self._pending)
        length = min(len(data), len(self._target))
        self._target[:length] = data[:length]
        self._target = self._target[length:]
        return data[length:]

    def _read_header(self) -> None:
        if self._header_end == PREFIX:
            self._header_end += header_length(bytes(self._header))
        if len(self._header) == self._header_end:
            text = bytes(self._header[PREFIX:])
            blocks, is_torch = _cached_layout(text) if len(text) <= CACHED_BYTES else _layout(text)
            self._pending = list(blocks)[::-1]
            if self.framework is None:
                self.framework = "torch" if "torch" in sys.modules and is_torch else "numpy"
            self._header.clear()

    def _begin_block(self, pending: list[Block]) -> None:
        block = pending.pop()
        allocate = allocate_tensors if self.framework == "torch" else allocate_arrays
        try:
            tensors, self._target = allocate(block)
        except TensorError:
            raise
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            name = block.tensors[0][0].name
            raise TensorError(f"Tensor {name!r} does not fit into memory: {error}") from error
        self._tensors.update(tensors)


def _layout(text: bytes) -> tuple[tuple[Block, ...], bool]:
    """Returns the blocks of a file that has a header, and whether its tensors are those of torch."""
    header = read_header(text)
    return divide(header.tensors), header.is_torch


_cached_layout = lru_cache(maxsize=4)(_layout)
