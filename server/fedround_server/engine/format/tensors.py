"""Tensors of files, read one block at a time."""

import mmap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.format.layouts import Layouts
from fedround_server.engine.format.manifest import PREFIX, Layout, parse_header

BLOCK = 128 * 1024
"""Elements that are processed at a time: a float64 block fits the second-level cache."""


class TensorFile:
    """A safetensors file, mapped into memory. Its tensors may be used during its `with` block."""

    def __init__(self, path: Path, layouts: Layouts | None = None) -> None:
        """Maps a file that was checked, or that the server wrote, and that must not change.

        The layouts are those of other files with the same tensors.
        """
        with path.open("rb") as file:
            # Read-only: writable memory counts as used, and a round may be larger than the machine's memory.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            # torch warns of read-only memory. Nothing writes to it.
            warnings.simplefilter("ignore")
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        header = self._map[PREFIX : PREFIX + int.from_bytes(self._map[:PREFIX], "little")]
        self.layout: Layout = parse_header(header, own=True) if layouts is None else layouts.read(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Unmaps the file as soon as no tensor of it is in use."""
        # Never closed: torch would not prevent it, and reading a tensor would then end the process.
        del self._map, self._bytes

    @property
    def header(self) -> bytes:
        """Everything before the data."""
        return self._map[: self.layout.data_start]

    def block(self, name: str, start: int, length: int) -> Tensor:
        """Returns numbers of a flattened tensor; aligned ones are not copied.

        Args:
            name: The tensor; a complex one has two numbers an element.
            start: Index of the first number. It may lie behind the tensor's end, in one of the same run.
            length: How many numbers, of that run.

        Returns:
            Shape (length,), in the tensor's dtype, or in that of its parts; not to be written to.
        """
        dtype = TORCH_DTYPES[self.layout.manifest[name].dtype]
        offset = self.layout.offsets[name] + start * dtype.itemsize
        data = self._bytes[offset : offset + length * dtype.itemsize]
        if offset % dtype.itemsize:
            data = data.clone()
        return data.view(dtype)

    def tensor(self, name: str) -> Tensor:
        """Returns a copy of a whole tensor, in its shape and dtype."""
        spec = self.layout.manifest[name]
        numbers = self.block(name, 0, spec.num_numbers).clone()
        if spec.dtype.is_complex:
            return torch.view_as_complex(numbers.reshape(*spec.shape, 2))
        return numbers.reshape(spec.shape)


def blocks(num_elements: int) -> Iterator[tuple[int, int]]:
    """Divides a flattened tensor, or a run of them, into blocks: yields (start, length)."""
    for start in range(0, num_elements, BLOCK):
        yield start, min(BLOCK, num_elements - start)
