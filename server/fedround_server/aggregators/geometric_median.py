"""The geometric median, RFA (Pillutla et al., Robust Aggregation for Federated Learning, arXiv 1912.13445)."""

from dataclasses import dataclass
from math import fsum

from fedround_server.aggregators.options import check_positive, check_range
from fedround_server.aggregators.rule import LinearRule, Shares, Updates, distances_to


@dataclass(frozen=True)
class GeometricMedian(LinearRule):
    """The point with the smallest sum of distances to the updates, weighted by the number of examples.

    It is approximated by the smoothed Weiszfeld algorithm, which begins at the round's model.

    Attributes:
        iterations: Of that algorithm, >= 1.
        nu: Distances count as at least this, > 0.
    """

    name = "geometric_median"
    needs_products = True
    iterations: int = 3
    nu: float = 1e-6

    def check(self) -> None:
        """Checks the iterations and nu."""
        check_range("iterations", self.iterations, 1, 1000)
        check_positive("nu", self.nu)

    def shares(self, updates: Updates) -> Shares:
        """Returns the weights of the last iteration."""
        import numpy as np

        weights = np.array(updates.weights, dtype=np.float64)
        point = np.zeros(len(weights))
        coefficients = weights
        for _ in range(self.iterations):
            coefficients = weights / np.maximum(distances_to(point, updates.products), self.nu)
            point = coefficients / coefficients.sum()
        found = coefficients.tolist()
        return Shares(found, fsum(found))
