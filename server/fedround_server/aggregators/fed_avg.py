"""FedAvg (McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017)."""

from dataclasses import dataclass
from typing import ClassVar

from fedround_server.aggregators.rule import LinearRule, Shares, Updates


@dataclass(frozen=True)
class FedAvg(LinearRule):
    """The mean, weighted by the number of examples."""

    name = "fed_avg"
    nests: ClassVar[bool] = True

    def shares(self, updates: Updates) -> Shares:
        """Returns the weights."""
        return Shares(updates.weights, sum(updates.weights))
