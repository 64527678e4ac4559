"""FedDC (Kamp et al., Federated Learning from Small Datasets, ICLR 2023)."""

from torch import Tensor

from fedround_server.engine.aggregators.block import Block
from fedround_server.engine.aggregators.fed_avg import fed_avg


def fed_dc(block: Block, /) -> Tensor:
    """Averages like FedAvg at the end of a daisy chain; domain/chain.py has the deals before it."""
    return fed_avg(block)
