"""FedAvg (McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017)."""

import torch
from torch import Tensor

from fedround_server.engine.aggregators.block import Block

EXACT = 2.0**52
"""Weights up to this times a dtype's eps have exact products with its numbers: float64 has 53 bits."""


def fed_avg(block: Block, /) -> Tensor:
    """Averages the updates, weighted by their example counts, in float64.

    Sums are in canonical order, and products are exact or rounded separately: so the bits do not depend on how the
    work is divided into vectors or threads, nor on whether the processor fuses multiplication and addition. The mean is
    not always correctly rounded, and where it is not, it depends on the order.
    """
    mean = _weighted_sum(block, 1.0).div_(sum(block.weights))
    if block.model.dtype == torch.float64 and not torch.isfinite(mean).all():
        mean = torch.where(torch.isfinite(mean), mean, _mean_of_huge(block))
    return mean


def _mean_of_huge(block: Block) -> Tensor:
    """Averages elements whose weighted sum leaves float64's range, while their mean cannot.

    Weights are scaled by a power of two, which is exact, so that the sum stays in range. Rounding must not carry the
    mean over the largest of the updates: that may be float64's largest number.
    """
    weight = sum(block.weights)
    scale = 0.5 ** (weight.bit_length() + 1)
    lowest, highest = block.updates[0].clone(), block.updates[0].clone()
    for update in block.updates:
        torch.minimum(lowest, update, out=lowest)
        torch.maximum(highest, update, out=highest)
    return _weighted_sum(block, scale).div_(weight * scale).clamp_(lowest, highest)


def _weighted_sum(block: Block, scale: float) -> Tensor:
    total = torch.zeros(len(block.model), dtype=torch.float64)
    wide = torch.empty_like(total)
    for update, weight in zip(block.updates, block.weights, strict=True):
        wide.copy_(update)
        if scale == 1 and weight <= EXACT * torch.finfo(update.dtype).eps:
            # One pass over memory, which saves a quarter of the time.
            total.add_(wide, alpha=weight)
        else:
            total.add_(wide.mul_(weight * scale))
    return total
