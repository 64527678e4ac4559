"""Tensors of int8 differences, which have a scale for each block of numbers."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from fedround_server.domain.transport import SCALES
from fedround_server.engine.format.manifest import Layout
from fedround_server.engine.format.tensors import TensorFile


def differences(file: TensorFile, name: str, start: int, length: int, block_size: int) -> Tensor:
    """Returns numbers of a flattened tensor of int8 differences, each times its scale.

    The products are exact: an int8 has 7 bits, a scale 24, and float64 53.

    Args:
        file: A file that has the tensor and its scales.
        name: The tensor.
        start: Index of the first number.
        length: How many numbers, at least 1.
        block_size: How many numbers share a scale.

    Returns:
        Shape (length,), float64.

    Raises:
        BlobDamaged: The file does not have the bytes there that were stored.
    """
    first = start // block_size
    count = (start + length - 1) // block_size - first + 1
    scales = file.block(name + SCALES, first, count).double()
    skipped = start - first * block_size
    factors = scales.unsqueeze(1).expand(count, block_size).reshape(-1)[skipped : skipped + length]
    return torch.mul(file.block(name, start, length), factors)


def without_scaled(layout: Layout, names: Collection[str]) -> Layout:
    """Returns a layout without some tensors of int8 differences and their scales."""
    left_out = {*names, *(name + SCALES for name in names)}
    kept = {name: spec for name, spec in layout.manifest.items() if name not in left_out}
    return replace(layout, manifest=kept, offsets={name: layout.offsets[name] for name in kept})
