"""Checks the numbers of a file before it is accepted, in one pass."""

from collections.abc import Mapping
from math import hypot, inf
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from fedround_server.domain.transport import INT8_LIMIT, SCALES
from fedround_server.engine.format.dtypes import first_not_finite, is_finite, widen
from fedround_server.engine.format.finite import NEGATIVE_SCALE, OUT_OF_RANGE
from fedround_server.engine.format.prefixed import divided
from fedround_server.engine.format.runs import runs, singly
from fedround_server.engine.format.scaled import differences, without_scaled
from fedround_server.engine.format.tensors import TensorFile, Tensors, blocks
from fedround_server.engine.jobs import CheckResult

SMALLEST = 1e-140
"""A norm below this may have lost squares to underflow."""
NOTHING = torch.zeros(())


def check_numbers(
    path: Path,
    origin: Tensors | None = None,
    prefix: str = "",
    model: Tensors | None = None,
    block_sizes: Mapping[str, int] = MappingProxyType({}),
    beside: str = "",
) -> CheckResult:
    """Looks for NaN and Inf, checks the scales of int8 differences, and measures how far the file is from its origin.

    Args:
        path: A safetensors file whose header has been accepted.
        origin: The model that it was made from. A tensor of the file that has another type there is a difference.
        prefix: What the file puts before the names of the origin's tensors.
        model: A model that has the file's tensors, whose NaN and Inf the file may have in the same places.
        block_sizes: How many numbers of the file share a scale, by the name of a tensor of int8 differences.
        beside: What precedes the names of tensors that neither the origin nor the model has; empty if there are none.

    Raises:
        BlobDamaged: The origin or the model is not what was stored.
    """
    norm = 0.0
    with TensorFile(path) as file:
        layout = without_scaled(file.layout, block_sizes) if block_sizes else file.layout
        if beside:
            layout, own = divided(layout, beside)
            for run in runs(own):
                for start, length in blocks(run.num_numbers):
                    block = widen(file.block(run.first, start, length))
                    if not is_finite(block):
                        return CheckResult(not_finite=run.owner(start + first_not_finite(block)))
        for name, block_size in block_sizes.items():
            found = _check_scaled(file, name, block_size, measured=origin is not None)
            if found.not_finite is not None or found.problem is not None:
                return found
            norm = hypot(norm, found.norm)
        others = [other.layout for other in (origin, model) if other is not None]

        def has_places(name: str) -> bool:
            # Not an adapter of a lower rank, which the model has in another shape.
            return model is not None and model.layout.manifest[name].shape == layout.manifest[name].shape

        # With a prefix, only some of the tensors are in the origin.
        for run in singly(layout) if prefix else runs(layout, others, apart=has_places):
            if not run.dtype.is_floating:
                continue
            before = run.first.removeprefix(prefix) if origin is not None and run.first.startswith(prefix) else None
            is_difference = (
                origin is not None and not prefix and origin.layout.manifest[run.first].dtype is not run.dtype
            )
            for start, length in blocks(run.num_numbers):
                block = widen(file.block(run.first, start, length))
                origins = None if origin is None or before is None else widen(origin.block(before, start, length))
                if is_difference:
                    origins = NOTHING
                if model is not None and not is_finite(block) and has_places(run.first):
                    kept = _are_kept(block, widen(model.block(run.first, start, length)))
                    block = block.masked_fill(kept, 0)
                    origins = None if origins is None else origins.masked_fill(kept, 0)
                step = _distance(block, origins)
                if step is None:
                    return CheckResult(not_finite=run.owner(start + first_not_finite(block)))
                # hypot does not overflow where a sum of squares would.
                norm = hypot(norm, step)
    return CheckResult(norm=norm)


def _check_scaled(file: TensorFile, name: str, block_size: int, *, measured: bool) -> CheckResult:
    """Checks a tensor of int8 differences and its scales; measures the norm of the differences."""
    scales = name + SCALES
    for start, length in blocks(file.layout.manifest[scales].num_numbers):
        block = file.block(scales, start, length)
        if not is_finite(block):
            return CheckResult(not_finite=scales)
        if block.min() < 0:
            return CheckResult(problem=NEGATIVE_SCALE.format(scales))
    norm = 0.0
    for start, length in blocks(file.layout.manifest[name].num_numbers):
        if file.block(name, start, length).min() < -INT8_LIMIT:
            return CheckResult(problem=OUT_OF_RANGE.format(name))
        if measured:
            block = differences(file, name, start, length, block_size)
            norm = hypot(norm, float(torch.linalg.vector_norm(block)))
    return CheckResult(norm=norm)


def _are_kept(block: Tensor, model: Tensor) -> Tensor:
    """Returns where a block has NaN or Inf that its model has, too; a difference from the model has none."""
    if block.dtype is not model.dtype:
        return torch.zeros_like(block, dtype=torch.bool)
    same = (block == model).logical_or_(block.isnan().logical_and_(model.isnan()))
    return same.logical_and_(torch.isfinite(block).logical_not_())


def _distance(block: Tensor, origin: Tensor | None) -> float | None:
    """Returns the distance of a block from its origin, 0 without one; None if the block contains NaN or Inf."""
    if origin is None:
        return 0.0 if is_finite(block) else None
    difference = block.double() - origin
    norm = float(torch.linalg.vector_norm(difference))
    if SMALLEST < norm < inf:
        return norm
    if not is_finite(block):
        return None
    scale = float(difference.abs().max())
    # Zero and infinity (the distance of two huge opposite numbers) cannot be scaled by.
    return scale if scale in (0.0, inf) else scale * float(torch.linalg.vector_norm(difference / scale))
