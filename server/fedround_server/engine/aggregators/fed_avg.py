"""FedAvg (McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017)."""

import torch
from torch import Tensor

from fedround_server.engine.aggregators.block import Block


def fed_avg(block: Block, /) -> Tensor:
    """Averages the updates, weighted by their example counts, in float64.

    Products and sums are separate operations in canonical order: each is correctly rounded by itself, so the bits don't
    depend on how the work is cut into vectors or threads.
    """
    total = torch.zeros(len(block.model), dtype=torch.float64)
    scaled = torch.empty_like(total)
    for update, weight in zip(block.updates, block.weights, strict=True):
        scaled.copy_(update).mul_(weight)
        total.add_(scaled)
    return total.div_(sum(block.weights))
