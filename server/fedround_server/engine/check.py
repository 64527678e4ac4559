"""Looks at the numbers of a file before it is accepted, in one pass."""

from collections.abc import Iterator
from contextlib import ExitStack
from math import hypot, inf
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.engine.format.manifest import Layout
from fedround_server.engine.format.runs import Run, runs, singly
from fedround_server.engine.format.tensors import TensorFile, blocks, first_not_finite, is_finite
from fedround_server.engine.jobs import Examination, Origin

SMALLEST = 1e-140
"""Below this, squares vanish that a norm is the root of."""
NOTHING = torch.zeros(())


def examine(path: Path, origin: Origin | None = None) -> Examination:
    """Looks for NaN and Inf, and measures how far the file is from its origin.

    Args:
        path: A safetensors file that has passed the gate.
        origin: The model that it was made from; each of its floating tensors is in the file, as it is or as its
            difference in another type.
    """
    norm = 0.0
    with ExitStack() as stack:
        file = stack.enter_context(TensorFile(path))
        base = None if origin is None else stack.enter_context(TensorFile(origin.path))
        prefix = "" if origin is None else origin.prefix
        for run in _runs(file.layout, base, prefix):
            if not run.dtype.is_floating:
                continue
            before = run.first.removeprefix(prefix) if base is not None and run.first.startswith(prefix) else None
            is_difference = base is not None and not prefix and base.layout.manifest[run.first].dtype is not run.dtype
            for start, length in blocks(run.num_elements):
                block = file.block(run.first, start, length)
                origins = None if base is None or before is None else base.block(before, start, length)
                if is_difference:
                    origins = NOTHING
                step = _distance(block, origins)
                if step is None:
                    return Examination(not_finite=run.owner(start + first_not_finite(block)))
                # Of a sum of squares, the root may be a float where the sum is none.
                norm = hypot(norm, step)
    return Examination(norm=norm)


def _runs(layout: Layout, base: TensorFile | None, prefix: str) -> Iterator[Run]:
    if prefix:
        # Only some of the tensors are in the origin.
        return singly(layout)
    return runs(layout, () if base is None else (base.layout,))


def _distance(block: Tensor, origin: Tensor | None) -> float | None:
    """Returns how far a block is from its origin, if that is given; None if the block contains NaN or Inf."""
    if origin is None:
        return 0.0 if is_finite(block) else None
    difference = block.double() - origin
    norm = float(torch.linalg.vector_norm(difference))
    if SMALLEST < norm < inf:
        return norm
    if not is_finite(block):
        return None
    scale = float(difference.abs().max())
    # Neither zero nor an overflow, the distance of two opposite giants, can be scaled with.
    return scale if scale in (0.0, inf) else scale * float(torch.linalg.vector_norm(difference / scale))
