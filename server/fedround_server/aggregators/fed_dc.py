"""FedDC, daisy chaining (Kamp et al., Federated Learning from Small Datasets, ICLR 2023, arXiv 2110.03469)."""

from dataclasses import dataclass

from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.options import MAX_SEED, check_range
from fedround_server.domain.aggregation import DaisyChaining, OptionInvalid

MAX_CHAIN = 10_000
"""Local rounds before an average, at most."""
CHAINS = 10
"""An average after so many daisy periods, by default."""


@dataclass(frozen=True)
class FedDC(FedAvg, DaisyChaining):
    """FedAvg after several rounds in which local models change hands.

    Attributes:
        daisy_period: Local rounds before the models change hands, >= 1.
        aggregation_period: Local rounds before they are averaged; a multiple of daisy_period. 0: ten of those.
        seed: Makes the assignments reproducible.
    """

    name = "fed_dc"
    nests = False
    daisy_period: int = 1
    aggregation_period: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Sets the default period."""
        if not self.aggregation_period:
            object.__setattr__(self, "aggregation_period", CHAINS * self.daisy_period)

    def check(self) -> None:
        """Checks the periods and the seed."""
        daisy, period = self.daisy_period, self.aggregation_period
        check_range("daisy_period", daisy, 1, MAX_CHAIN)
        if not daisy <= period <= MAX_CHAIN or period % daisy:
            problem = f"is {period}; must be a multiple of daisy_period ({daisy}), at most {MAX_CHAIN}"
            raise OptionInvalid("aggregation_period", problem)
        check_range("seed", self.seed, 0, MAX_SEED)
