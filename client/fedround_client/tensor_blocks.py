"""Memory for the tensors of a file: small ones that lie side by side share a block, which is filled at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from fedround_client.safetensors_header import DTYPE_NAMES, DTYPE_SIZES, TensorInfo
from fedround_client.tensor_types import TensorError

SMALL_BYTES = 64 << 10
"""Size from which a tensor has a block of its own."""
BLOCK_BYTES = 1 << 20
"""Size of the largest block that several tensors share: as much stays in memory as long as one of them is in use."""
TORCH_ONLY = frozenset({"BF16", "F8_E4M3", "F8_E5M2"})
"""The dtypes that numpy does not have."""

NUMPY_AND_TORCH = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "F32", "F64", "C64"})
"""Those that arrays and tensors of all versions share; torch.from_numpy does not take the others in all versions."""

# By their texts: those that newbyteorder returns are no built-in ones for numpy, which is slower with them.
_NUMPY = {
    name: np.dtype(np.dtype(dtype).newbyteorder("<").str)
    for name, dtype in DTYPE_NAMES.items()
    if name not in TORCH_ONLY
}


class Block(NamedTuple):
    """Tensors that lie side by side.

    Attributes:
        num_bytes: Size of their data.
        tensors: Each tensor, and where its data begins in the block.
    """

    num_bytes: int
    tensors: tuple[tuple[TensorInfo, int], ...]


def divide(tensors: tuple[TensorInfo, ...]) -> tuple[Block, ...]:
    """Divides the tensors of a file, in the order of their data, into blocks in which each of them is aligned."""
    blocks: list[Block] = []
    group: list[tuple[TensorInfo, int]] = []
    size = 0
    for info in tensors:
        length = info.num_bytes
        # A shape without elements may have any other sizes, and so be one that no array can have.
        is_alone = length >= SMALL_BYTES or not length
        if group and (is_alone or size + length > BLOCK_BYTES or size % DTYPE_SIZES[info.dtype]):
            blocks.append(Block(size, tuple(group)))
            group, size = [], 0
        if is_alone:
            blocks.append(Block(length, ((info, 0),)))
        else:
            group.append((info, size))
            size += length
    if group:
        blocks.append(Block(size, tuple(group)))
    return tuple(blocks)


def allocate_arrays(block: Block) -> tuple[Iterable[tuple[str, Any]], memoryview]:
    """Returns writable arrays with the shapes and dtypes of a block's tensors, by name, and their memory as bytes.

    Raises:
        TensorError: numpy does not have a dtype, or a tensor does not fit into memory.
    """
    for info, _ in block.tensors:
        if info.dtype in TORCH_ONLY:
            raise TensorError(
                f"numpy has no dtype {info.dtype}, which tensor {info.name!r} has: read this model with"
                ' framework="torch" (and torch installed).'
            )
    if len(block.tensors) == 1:
        ((info, _),) = block.tensors
        array = np.empty(info.shape, _NUMPY[info.dtype])
        return [(info.name, array)], array.reshape(-1).view(np.uint8).data
    memory = np.empty(block.num_bytes, np.uint8)
    return (
        [(info.name, np.ndarray(info.shape, _NUMPY[info.dtype], memory, offset)) for info, offset in block.tensors],
        memory.data,
    )


def allocate_tensors(block: Block) -> tuple[Iterable[tuple[str, Any]], memoryview]:
    """Returns torch tensors with the shapes and dtypes of a block's tensors, by name, and their memory as bytes.

    Tensors that share a block are not views of one tensor: each has a storage and a version counter of its own, so that
    autograd, copy.deepcopy and torch.save treat them as if they shared nothing.

    Raises:
        TensorError: A tensor does not fit into memory.
    """
    import torch

    if len(block.tensors) == 1:
        ((info, _),) = block.tensors
        tensor = torch.empty(info.shape, dtype=getattr(torch, DTYPE_NAMES[info.dtype]), device="cpu")
        return [(info.name, tensor)], tensor.reshape(-1).view(torch.uint8).numpy().data
    memory = np.empty(block.num_bytes, np.uint8)
    tensors = []
    for info, offset in block.tensors:
        if info.dtype in NUMPY_AND_TORCH:
            tensor = torch.from_numpy(np.ndarray(info.shape, _NUMPY[info.dtype], memory, offset))
        else:
            data = torch.from_numpy(memory[offset : offset + info.num_bytes])
            tensor = data.view(getattr(torch, DTYPE_NAMES[info.dtype])).view(info.shape)
        tensors.append((info.name, tensor))
    return tensors, memory.data
