"""Centered clipping (Karimireddy et al., Learning from History, ICML 2021, arXiv 2012.10333)."""

from dataclasses import dataclass

from fedround_server.aggregators.options import check_positive, check_range
from fedround_server.aggregators.rule import LinearRule, Shares, Updates, distances_to


@dataclass(frozen=True)
class CenteredClipping(LinearRule):
    """The mean of the updates, each clipped around what the round before has made of the model; without weights.

    Attributes:
        tau: How far an update may be from there, > 0.
        iterations: How often the center is moved, >= 1.
    """

    name = "centered_clipping"
    needs_products = True
    keeps_aggregate = True
    tau: float = 10.0
    iterations: int = 1

    def check(self) -> None:
        """Checks tau and the iterations."""
        check_positive("tau", self.tau)
        check_range("iterations", self.iterations, 1, 1000)

    def shares(self, updates: Updates) -> Shares:
        """Returns the center after the last iteration."""
        import numpy as np

        count = len(updates)
        products = np.zeros((count + 1, count + 1))
        products[:count, :count] = updates.products
        products[count] = products[:, count] = updates.kept_products
        # A vector is written as multiples of the differences and of the kept aggregate.
        center = np.zeros(count + 1)
        center[count] = 1.0
        for _ in range(self.iterations):
            scales = self.tau / np.maximum(distances_to(center, products)[:count], self.tau)
            center *= 1 - scales.sum() / count
            center[:count] += scales / count
        return Shares(center[:count].tolist(), kept=float(center[count]))
