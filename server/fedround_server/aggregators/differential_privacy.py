"""Central differential privacy: noise that is added to the sum of clipped updates.

DP-FedAvg: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018, arXiv 1710.06963.
DP-FTRL: Kairouz et al., Practical and Private (Deep) Learning Without Sampling or Shuffling, ICML 2021, arXiv
2103.00039. Adaptive clipping: Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS 2021,
arXiv 1905.03871.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

from fedround_server.aggregators.options import MAX_SEED, check_positive, check_range
from fedround_server.aggregators.rule import BaseStage
from fedround_server.domain.aggregation import OptionInvalid
from fedround_server.domain.privacy import Privacy

MIN_MULTIPLIER = 1e-3
"""With less noise than this, epsilon is in the hundreds of thousands after one round."""


@dataclass(frozen=True)
class DifferentialPrivacy(BaseStage, Privacy):
    """The sum of clipped updates gets Gaussian noise, and is divided by a number that does not depend on who answered.

    Attributes:
        noise_multiplier: Standard deviation of the noise, in multiples of the clipping norm, >= 0.001.
        delta: In (0, 1).
        epsilon_budget: >= 0; 0 means no limit.
        tree: Whether the noise of rounds is correlated by binary trees.
        example_cap: The weight of an update is min(examples, example_cap) / example_cap; 0 means 1 for all.
    """

    name = "differential_privacy"
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    epsilon_budget: float = 0.0
    tree: bool = False
    example_cap: int = 0

    def check(self) -> None:
        """Checks the options."""
        check_positive("noise_multiplier", self.noise_multiplier)
        check_range("noise_multiplier", self.noise_multiplier, MIN_MULTIPLIER, 1e9)
        if not 0 < self.delta < 1:
            raise OptionInvalid("delta", f"is {self.delta}; must be > 0 and < 1")
        check_range("epsilon_budget", self.epsilon_budget, 0)
        check_range("example_cap", self.example_cap, 0, MAX_SEED)


def count_noise(noise_multiplier: float, noise_std: float | None, expected: float) -> float:
    """Returns the standard deviation of the noise of the number of updates within an adaptive norm, in updates.

    By default it is a twentieth of the expected number of updates, as Andrew et al. recommend, but at least the noise
    multiplier: then the noise of the updates is at most 1.16 times as large as without adaptive clipping.

    Args:
        noise_multiplier: That of the privacy.
        noise_std: The option of adaptive clipping; None if it is not set.
        expected: How many updates a round expects.
    """
    return max(expected / 20, noise_multiplier) if noise_std is None else noise_std


def multiplier_of_updates(noise_multiplier: float, noise_std: float) -> float:
    """Returns the noise multiplier of the updates, if the noise of the number of updates within the norm counts, too.

    Both together are one Gaussian mechanism with the noise multiplier z: z_updates = (z^-2 - (2 noise_std)^-2)^-1/2
    (Andrew et al., theorem 1).

    Args:
        noise_multiplier: z.
        noise_std: Standard deviation of the noise of the number, in updates.

    Returns:
        Infinity if the noise of the number alone costs as much as both may.
    """
    left = noise_multiplier**-2 - (2 * noise_std) ** -2
    return 1 / sqrt(left) if left > 0 else inf
