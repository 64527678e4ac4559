"""Tensors in files, one block at a time."""

import hashlib
import math
import mmap
import os
import warnings
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from fedround_server.domain.model import BlobRef, Dtype, Manifest, differences
from fedround_server.engine.format.manifest import PREFIX, Layout, check_same, parse_header
from fedround_server.host.page_cache import Writeback

BLOCK = 128 * 1024
"""Elements that are worked on at a time: a float64 block fits the second-level cache."""
BATCH = 128 * 1024
"""Bytes that are worth the way to a thread: a model may have 20,000 small tensors."""
AHEAD = 8
"""Batches that may wait to be written."""

TORCH_DTYPES: Mapping[Dtype, torch.dtype] = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.I64: torch.int64,
    Dtype.I32: torch.int32,
    Dtype.I16: torch.int16,
    Dtype.I8: torch.int8,
    Dtype.U8: torch.uint8,
    Dtype.BOOL: torch.bool,
}


class Layouts:
    """The layouts of files with the same tensors.

    A round may have a thousand updates of twenty thousand tensors each: equal headers are parsed once, and of others
    only the offsets are kept.
    """

    def __init__(self, narrow: Dtype | None = None) -> None:
        """Begins with none known.

        Args:
            narrow: The type in which files may have differences from the first one, which is the model.
        """
        self._known: dict[bytes, Layout] = {}
        self._names: dict[str, int] = {}
        self._manifests: list[Manifest] = []
        self._narrow = narrow

    def read(self, header: bytes) -> Layout:
        """Returns the layout of a file.

        Raises:
            ModelFormat: This is no acceptable header.
            UpdateMismatch: The file has other tensors than the first one.
        """
        digest = hashlib.sha256(header).digest()
        if digest not in self._known:
            self._known[digest] = self._shrink(parse_header(header, own=True))
        return self._known[digest]

    def _shrink(self, layout: Layout) -> Layout:
        if not self._manifests:
            self._names = {name: number for number, name in enumerate(layout.manifest)}
            self._manifests = [layout.manifest]
            if self._narrow is not None:
                self._manifests.append(differences(layout.manifest, self._narrow))
        manifest = next((known for known in self._manifests if known == layout.manifest), self._manifests[0])
        check_same(layout.manifest, manifest)
        return replace(layout, manifest=manifest, offsets=_Offsets(self._names, layout.offsets))


class _Offsets(Mapping[str, int]):
    """Offsets by name, in eight bytes each; the names are shared."""

    def __init__(self, names: Mapping[str, int], offsets: Mapping[str, int]) -> None:
        self._names = names
        self._values = array("Q", [offsets[name] for name in names])

    def __getitem__(self, name: str) -> int:
        return self._values[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TensorFile:
    """A safetensors file, mapped into memory. Its `with` block is the time in which its tensors may be used."""

    def __init__(self, path: Path, layouts: Layouts | None = None) -> None:
        """Maps a file that has passed the gate, or that the server wrote.

        Args:
            path: The file; it must not change.
            layouts: Those of other files with the same tensors.
        """
        with path.open("rb") as file:
            # Read-only: memory that could be written to counts as used, and a round may be larger than the machine's.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            # torch warns of memory that must not be written to. Nothing writes to it.
            warnings.simplefilter("ignore")
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        header = self._map[PREFIX : PREFIX + int.from_bytes(self._map[:PREFIX], "little")]
        self.layout: Layout = parse_header(header, own=True) if layouts is None else layouts.read(header)

    def __enter__(self) -> Self:
        """Enters the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmaps the file as soon as nobody holds a tensor of it."""
        # Never closed: torch would not hinder it, and reading a tensor would then end the process.
        del self._map, self._bytes

    @property
    def header(self) -> bytes:
        """Everything before the data."""
        return self._map[: self.layout.data_start]

    def block(self, name: str, start: int, length: int) -> Tensor:
        """Returns elements of a flattened tensor, without copying those that are aligned.

        Args:
            name: The tensor.
            start: Index of the first element. It may lie behind the tensor's end, in one of the same run.
            length: How many elements, of that run.

        Returns:
            Shape (length,), in the tensor's dtype; not to be written to.
        """
        dtype = self.layout.manifest[name].dtype
        offset = self.layout.offsets[name] + start * dtype.itemsize
        data = self._bytes[offset : offset + length * dtype.itemsize]
        if offset % dtype.itemsize:
            data = data.clone()
        return data.view(TORCH_DTYPES[dtype])


class TensorWriter:
    """Writes a safetensors file in order, and hashes it on the way; in a thread, while the next blocks are computed."""

    def __init__(self, path: Path, header: bytes) -> None:
        """Begins the file.

        Args:
            path: Where to write.
            header: Everything before the data.
        """
        self._file = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._size = 0
        self._writeback = Writeback(self._file.fileno())
        self._waiting: list[memoryview] = [memoryview(header)]
        self._waiting_bytes = len(header)
        self._thread = ThreadPoolExecutor(1)
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """Enters the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def write(self, block: Tensor) -> None:
        """Appends a flat block, which must not change any more.

        Raises:
            OSError: An earlier one could not be written.
        """
        data = block.contiguous().view(torch.uint8).numpy().data
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= BATCH:
            self._submit()

    def finish(self) -> BlobRef:
        """Forces the file to disk and returns what it contains.

        Raises:
            OSError: It could not be written.
        """
        self._submit()
        while self._under_way:
            self._under_way.popleft().result()
        os.fsync(self._file.fileno())
        return BlobRef(self._hash.hexdigest(), self._size)

    def _submit(self) -> None:
        self._under_way.append(self._thread.submit(self._put, self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        if len(self._under_way) > AHEAD:
            self._under_way.popleft().result()

    def _put(self, parts: list[memoryview]) -> None:
        data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        self._hash.update(data)
        self._size += len(data)
        while data:
            data = data[self._file.write(data) :]
        self._writeback.grown(self._size)


def is_finite(block: Tensor) -> bool:
    """Tells whether a block of a floating dtype has neither NaN nor Inf.

    One of them makes every sum that it is in one of them, too, and a sum takes a tenth of the time of a look at each
    element. A sum may also overflow by itself: then each element is looked at.
    """
    return math.isfinite(float(block.sum())) or bool(torch.isfinite(block).all())


def first_not_finite(block: Tensor) -> int:
    """Returns the index of the first element that is NaN or Inf, of a flat block that has one."""
    return int(torch.isfinite(block).logical_not_().nonzero()[0])


def blocks(num_elements: int) -> Iterator[tuple[int, int]]:
    """Cuts a flattened tensor, or a run of them, into (start, length)."""
    for start in range(0, num_elements, BLOCK):
        yield start, min(BLOCK, num_elements - start)
