"""Checks the numbers of a file before it is accepted, in one pass."""

from math import hypot, inf
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.engine.format.dtypes import first_not_finite, is_finite, widen
from fedround_server.engine.format.runs import runs, singly
from fedround_server.engine.format.tensors import TensorFile, Tensors, blocks
from fedround_server.engine.jobs import CheckResult

SMALLEST = 1e-140
"""A norm below this may have lost squares to underflow."""
NOTHING = torch.zeros(())


def check_numbers(
    path: Path, origin: Tensors | None = None, prefix: str = "", model: Tensors | None = None
) -> CheckResult:
    """Looks for NaN and Inf, and measures how far the file is from its origin.

    Args:
        path: A safetensors file whose header has been accepted.
        origin: The model that it was made from. A tensor of the file that has another type there is a difference.
        prefix: What the file puts before the names of the origin's tensors.
        model: A model that has the file's tensors, whose NaN and Inf the file may have in the same places.

    Raises:
        BlobDamaged: The origin or the model is not what was stored.
    """
    norm = 0.0
    with TensorFile(path) as file:
        others = [other.layout for other in (origin, model) if other is not None]
        # With a prefix, only some of the tensors are in the origin.
        for run in singly(file.layout) if prefix else runs(file.layout, others):
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
                if model is not None and not is_finite(block):
                    kept = _are_kept(block, widen(model.block(run.first, start, length)))
                    block = block.masked_fill(kept, 0)
                    origins = None if origins is None else origins.masked_fill(kept, 0)
                step = _distance(block, origins)
                if step is None:
                    return CheckResult(not_finite=run.owner(start + first_not_finite(block)))
                # hypot does not overflow where a sum of squares would.
                norm = hypot(norm, step)
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
