"""q-FedAvg (Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv 1905.10497, algorithm 2)."""

from dataclasses import dataclass
from math import fsum, isfinite

from fedround_server.aggregators.options import check_positive, check_range
from fedround_server.aggregators.rule import LinearRule, NoAggregate, Shares, Updates

LEAST_LOSS = 1e-10
"""Is added to losses, of which negative powers are taken."""


@dataclass(frozen=True)
class QFedAvg(LinearRule):
    """Participants with a larger loss have more weight; numbers of examples do not count.

    Attributes:
        q: How much more: 0 for none, >= 0.
        lipschitz: Estimate of the Lipschitz constant of the gradient, > 0: the inverse of the local learning rate.
    """

    name = "q_fed_avg"
    needs_products = True
    needs_loss = True
    q: float = 1.0
    lipschitz: float = 1.0

    def check(self) -> None:
        """Checks q and the constant."""
        check_range("q", self.q, 0)
        check_positive("lipschitz", self.lipschitz)

    def shares(self, updates: Updates) -> Shares:
        """Returns L F^q, over the sum of q F^(q-1) L^2 ||w - x||^2 + L F^q."""
        if not all(isfinite(loss) and loss >= 0 for loss in updates.losses):
            raise NoAggregate("q_fed_avg needs the initial loss of each update, finite and >= 0")
        losses = [loss + LEAST_LOSS for loss in updates.losses]
        squares = updates.products.diagonal().tolist()
        constant, largest = self.lipschitz, max(losses)
        # Divided by the power of the largest loss, which cancels: the powers alone overflow.
        powers = [(loss / largest) ** self.q for loss in losses]
        coefficients = [constant * power for power in powers]
        curvatures = [
            self.q * power / loss * constant * constant * square
            for power, loss, square in zip(powers, losses, squares, strict=True)
        ]
        return Shares(coefficients, fsum(coefficients + curvatures))
