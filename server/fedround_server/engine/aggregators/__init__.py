"""The aggregators by name. To add one, write its file here and its line below."""

from collections.abc import Mapping

from fedround_server.engine.aggregators.block import Aggregator, Block
from fedround_server.engine.aggregators.fed_avg import fed_avg

__all__ = ["AGGREGATORS", "Aggregator", "Block"]

AGGREGATORS: Mapping[str, Aggregator] = {
    "fed_avg": fed_avg,
    # Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020: the proximal term is in clients' losses.
    "fed_prox": fed_avg,
    # Kamp et al., Federated Learning from Small Datasets, ICLR 2023: averages at the end of a daisy chain.
    "fed_dc": fed_avg,
}
