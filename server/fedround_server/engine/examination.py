"""Looks at the numbers of a file before it is accepted, in one pass."""

from contextlib import ExitStack
from math import hypot
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.engine.job import Examination, Origin
from fedround_server.engine.tensors import TensorFile, blocks


def examine(path: Path, origin: Origin | None = None) -> Examination:
    """Looks for NaN and Inf, and measures how far the file is from its origin.

    Args:
        path: A safetensors file that has passed the gate.
        origin: The model that it was made from; each of its floating tensors is in the file.
    """
    norm = 0.0
    with ExitStack() as stack:
        file = stack.enter_context(TensorFile(path))
        base = None if origin is None else stack.enter_context(TensorFile(origin.path))
        prefix = "" if origin is None else origin.prefix
        for name, spec in file.layout.manifest.items():
            if not spec.dtype.is_floating:
                continue
            before = name.removeprefix(prefix) if name.startswith(prefix) else None
            for start, length in blocks(spec.num_elements):
                block = file.block(name, start, length)
                if not torch.isfinite(block).all():
                    return Examination(not_finite=name)
                if base is not None and before is not None:
                    # hypot: a sum of squares may be more than a float holds where its root is not.
                    norm = hypot(norm, _distance(block, base.block(before, start, length)))
    return Examination(norm=norm)


def _distance(block: Tensor, origin: Tensor) -> float:
    difference = block.to(torch.float64) - origin.to(torch.float64)
    scale = float(difference.abs().max())
    # Neither zero nor an overflow, the distance of two opposite giants, can be scaled with.
    if scale in (0.0, float("inf")):
        return scale
    return scale * float(torch.linalg.vector_norm(difference / scale))
