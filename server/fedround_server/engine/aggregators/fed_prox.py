"""FedProx (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020)."""

from torch import Tensor

from fedround_server.engine.aggregators.block import Block
from fedround_server.engine.aggregators.fed_avg import fed_avg


def fed_prox(block: Block, /) -> Tensor:
    """Averages like FedAvg: the proximal term, weighted by mu, is in the clients' loss."""
    return fed_avg(block)
