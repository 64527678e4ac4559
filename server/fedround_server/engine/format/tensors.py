"""Tensors of files, read one block at a time."""

import mmap
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import BlobRef
from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.format.layouts import Layouts
from fedround_server.engine.format.manifest import PREFIX, Layout, parse_header
from fedround_server.engine.format.verification import Verifier, read_verified

WHOLE_BYTES = 16 * 1024
"""Updates up to this size are read into memory: one that is mapped takes two descriptors, and there may be 20,000."""
BLOCK = 128 * 1024
"""Elements that are processed at a time: a float64 block fits the second-level cache."""


class Tensors(Protocol):
    """The tensors of a file, or of a version that is stored as two files."""

    @property
    def layout(self) -> Layout:
        """Names, types and shapes, and an offset for each: tensors whose offsets are adjacent are read as one."""

    def block(self, name: str, start: int, length: int) -> Tensor:
        """Returns numbers of a flattened tensor, as `TensorFile.block` does."""

    def tensor(self, name: str) -> Tensor:
        """Returns a copy of a whole tensor, in its shape and dtype."""


class TensorFile:
    """A safetensors file, mapped into memory. Its tensors may be used during its `with` block."""

    def __init__(
        self,
        path: Path,
        layouts: Layouts | None = None,
        verifier: Verifier | None = None,
        *,
        content: bytes | None = None,
    ) -> None:
        """Maps a file that was checked, or that the server wrote, and that must not change.

        Args:
            path: The file.
            layouts: Those of other files with the same tensors.
            verifier: Verifies what is read of the file, and is closed with it. None for one that was just received.
            content: All of its bytes, verified: then it is not mapped.

        Raises:
            BlobDamaged: It is not what was stored.
        """
        with ExitStack() as stack:
            self._verifier = None if verifier is None else stack.enter_context(verifier)
            self._map = _mapped(path) if content is None else content
            with warnings.catch_warnings():
                # torch warns of read-only memory. Nothing writes to it.
                warnings.simplefilter("ignore")
                self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
            self._verify(0, PREFIX)
            header_end = PREFIX + int.from_bytes(self._map[:PREFIX], "little")
            self._verify(PREFIX, header_end)
            header = self._map[PREFIX:header_end]
            self.layout: Layout = parse_header(header, own=True) if layouts is None else layouts.read(header)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Unmaps the file as soon as no tensor of it is in use."""
        self._open.close()
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

        Raises:
            BlobDamaged: The file does not have the bytes there that were stored.
        """
        dtype = TORCH_DTYPES[self.layout.manifest[name].dtype]
        offset = self.layout.offsets[name] + start * dtype.itemsize
        self._verify(offset, offset + length * dtype.itemsize)
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

    def _verify(self, start: int, end: int) -> None:
        if self._verifier is not None:
            self._verifier.verify(start, end)


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        # Read-only: writable memory counts as used, and a round may be larger than the machine's memory.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def open_blob(files: BlobFiles, blob: BlobRef, ahead: Executor | None = None) -> TensorFile:
    """Opens a stored file, which is verified while it is read.

    Args:
        files: Where the stored files are.
        blob: The file.
        ahead: Verifies what is likely to be read next.

    Raises:
        BlobDamaged: It is missing, or is not what was stored.
    """
    path = files.local_path(blob)
    return TensorFile(path, verifier=Verifier(path, blob, ahead))


@contextmanager
def open_blobs(
    files: BlobFiles, blobs: Sequence[BlobRef], layouts: Layouts, ahead: Executor
) -> Iterator[list[TensorFile]]:
    """Opens stored files with the same tensors; `open_blob` describes the arguments.

    The beginnings of all are verified while the first ones are opened; small ones are read.

    Raises:
        BlobDamaged: One is missing, or is not what was stored.
    """
    with ExitStack() as stack:
        paths = [files.local_path(blob) for blob in blobs]
        parts = [
            read_verified(path, blob)
            if blob.size_bytes <= WHOLE_BYTES
            else stack.enter_context(Verifier(path, blob, ahead))
            for path, blob in zip(paths, blobs, strict=True)
        ]
        yield [
            stack.enter_context(
                TensorFile(path, layouts, content=part) if isinstance(part, bytes) else TensorFile(path, layouts, part)
            )
            for path, part in zip(paths, parts, strict=True)
        ]


def blocks(num_elements: int) -> Iterator[tuple[int, int]]:
    """Divides a flattened tensor, or a run of them, into blocks: yields (start, length)."""
    for start in range(0, num_elements, BLOCK):
        yield start, min(BLOCK, num_elements - start)
