"""FedProx (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv 1812.06127)."""

from dataclasses import dataclass

from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.options import check_range


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg; participants add a proximal term to their loss.

    Attributes:
        mu: The weight of the term, >= 0.
    """

    name = "fed_prox"
    mu: float = 0.0

    def check(self) -> None:
        """Checks mu."""
        check_range("mu", self.mu, 0)
