"""The aggregators by name: to add one, write its file here and its line below."""

from collections.abc import Mapping

from fedround_server.engine.aggregators.block import Aggregator, Block
from fedround_server.engine.aggregators.fed_avg import fed_avg
from fedround_server.engine.aggregators.fed_dc import fed_dc
from fedround_server.engine.aggregators.fed_prox import fed_prox

__all__ = ["AGGREGATORS", "Aggregator", "Block"]

AGGREGATORS: Mapping[str, Aggregator] = {
    "fed_avg": fed_avg,
    "fed_prox": fed_prox,
    "fed_dc": fed_dc,
}
