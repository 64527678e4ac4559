"""SCAFFOLD (Karimireddy et al., Stochastic Controlled Averaging, ICML 2020, arXiv 1910.06378), algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.options import check_positive
from fedround_server.aggregators.rule import Shares, StatefulRule, StepContext, Updates

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scaffold(StatefulRule):
    """The mean without weights; participants correct their gradients by c - c_i, and send the change of c_i.

    Attributes:
        learning_rate: How far the model goes towards the mean, > 0.
    """

    name = "scaffold"
    slots = ("c",)
    control = "c"
    learning_rate: float = 1.0

    def check(self) -> None:
        """Checks the learning rate."""
        check_positive("learning_rate", self.learning_rate)

    def shares(self, updates: Updates) -> Shares:
        """Returns the learning rate for each, over their number."""
        return Shares([self.learning_rate] * len(updates), len(updates))

    def step(self, delta: Tensor, state: Mapping[str, Tensor], context: StepContext) -> Tensor | None:
        """Adds the sum of the changes of all c_i, over the number of participants, to c."""
        state["c"].add_(context.control / context.population)
        return None
