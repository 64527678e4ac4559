"""FedDyn (Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, arXiv 2111.04263)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.options import check_positive
from fedround_server.aggregators.rule import Shares, StatefulRule, StepContext, Updates

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedDyn(StatefulRule):
    """The mean without weights, less h / alpha; participants add a regularizer to their loss.

    Attributes:
        alpha: The weight of the regularizer, > 0.
    """

    name = "fed_dyn"
    slots = ("h",)
    takes_optimizer = False
    alpha: float = 0.1

    def check(self) -> None:
        """Checks alpha."""
        check_positive("alpha", self.alpha)

    def shares(self, updates: Updates) -> Shares:
        """Returns 1 for each, over their number."""
        return Shares([1.0] * len(updates), len(updates))

    def step(self, delta: Tensor, state: Mapping[str, Tensor], context: StepContext) -> Tensor | None:
        """Makes a step: h = h - alpha sum(differences) / population; the model goes on by delta - h / alpha."""
        h = state["h"].sub_(delta * (self.alpha * (context.count / context.population)))
        return delta - h / self.alpha
