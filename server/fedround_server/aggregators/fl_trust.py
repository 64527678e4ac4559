"""FLTrust (Cao et al., Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS 2021, arXiv 2012.13995)."""

from dataclasses import dataclass, replace
from math import fsum, sqrt

from fedround_server.aggregators.rule import LinearRule, NoAggregate, Shares, Updates
from fedround_server.domain.aggregation import OptionInvalid


@dataclass(frozen=True)
class FLTrust(LinearRule):
    """The mean of the updates, weighted by their cosine to a trusted one, and scaled to its norm.

    The trusted participant has a small clean data set, as the server has in the paper. Its own update has no share.
    Numbers of examples do not count.

    Attributes:
        trusted_client_id: The user id of the trusted participant.
    """

    name = "fl_trust"
    selects = True
    needs_products = True
    trusted_client_id: str = ""

    def check(self) -> None:
        """Checks that there is a trusted participant."""
        if not self.trusted_client_id:
            raise OptionInvalid("trusted_client_id", "is empty; must be the user id of a participant")

    def min_updates(self) -> int:
        """Returns 2: the trusted one, and another."""
        return 2

    def required_users(self) -> tuple[str, ...]:
        """Returns the trusted participant."""
        return (self.trusted_client_id,)

    def for_participants(self) -> "FLTrust":
        """Returns the rule without the id: who knows it knows whose update to imitate."""
        return replace(self, trusted_client_id="")

    def shares(self, updates: Updates) -> Shares:
        """Returns the positive cosines, times the ratio of the norms."""
        if self.trusted_client_id not in updates.user_ids:
            raise NoAggregate("fl_trust needs an update of the trusted participant, and it has sent none with examples")
        trusted = updates.user_ids.index(self.trusted_client_id)
        norms = [sqrt(square) for square in updates.products.diagonal().tolist()]
        scores, coefficients = [], []
        for index, along in enumerate(updates.products[trusted].tolist()):
            lengths = norms[index] * norms[trusted]
            score = min(1.0, max(0.0, along / lengths)) if lengths and index != trusted else 0.0
            scores.append(score)
            coefficients.append(score * norms[trusted] / norms[index] if score else 0.0)
        return Shares(coefficients, fsum(scores) or 1.0)
