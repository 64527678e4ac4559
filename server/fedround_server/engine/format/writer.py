"""Safetensors files, written one block at a time."""

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedround_server.blobs import BlockChecksums
from fedround_server.domain.model import BlobRef
from fedround_server.host.page_cache import Writeback
from fedround_server.host.sync import sync_file

BATCH = 128 * 1024
"""Bytes that are worth passing to the thread: a model may have 20,000 small tensors."""
AHEAD = 8
"""Batches that may wait to be written."""


Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
"""The bytes of numbers, flat."""


def bytes_of(block: Tensor) -> Bytes:
    """Returns the bytes of a flat block, which must not change any more."""
    data: Bytes = block.contiguous().view(torch.uint8).numpy()
    return data


class Hash(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Adds bytes."""

    def copy(self) -> Self:
        """Returns a copy of the state."""

    def hexdigest(self) -> str:
        """Returns the digest of the bytes so far, in hex."""


class TensorWriter:
    """Writes a safetensors file in order, in a thread, while the next blocks are computed.

    The thread computes the digest and the checksums, too.
    """

    def __init__(self, path: Path, header: bytes, data_hash: Hash | None = None) -> None:
        """Begins the file, which must not exist.

        Args:
            path: The file.
            header: Everything before the data.
            data_hash: Is updated with the data, but not with the header; complete after `finish`.
        """
        self._file = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._hashes: list[Hash] = [self._hash]
        self._checksums = BlockChecksums()
        self._size = 0
        self._writeback = Writeback(self._file.fileno())
        self._waiting: list[memoryview] = [memoryview(header)]
        self._waiting_bytes = len(header)
        self._thread = ThreadPoolExecutor(1)
        self._batches: deque[Future[None]] = deque()
        if data_hash is not None:
            self._submit()
            self._hashes = [self._hash, data_hash]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def write(self, block: Tensor | Bytes) -> None:
        """Appends a flat block, which must not change any more.

        Raises:
            OSError: An earlier one could not be written.
        """
        data = (bytes_of(block) if isinstance(block, Tensor) else block).data
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
        while self._batches:
            self._batches.popleft().result()
        sync_file(self._file.fileno())
        return BlobRef(self._hash.hexdigest(), self._size, self._checksums.digest())

    def _submit(self) -> None:
        self._batches.append(self._thread.submit(self._write, self._waiting, self._hashes))
        self._waiting, self._waiting_bytes = [], 0
        if len(self._batches) > AHEAD:
            self._batches.popleft().result()

    def _write(self, parts: list[memoryview], hashes: Sequence[Hash]) -> None:
        data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        for one in hashes:
            one.update(data)
        self._checksums.update(data)
        self._size += len(data)
        while data:
            data = data[self._file.write(data) :]
        self._writeback.grown(self._size)
