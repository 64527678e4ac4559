"""Partial sums: what a relay sends to its parent in place of the updates of its own participants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.fed_prox import FedProx
from fedround_server.aggregators.rule import BaseRule
from fedround_server.domain.partial_sum import check_tensors

if TYPE_CHECKING:
    from fedround_server.domain.model import Manifest
    from fedround_server.domain.tensor_selection import TensorSelection


@dataclass(frozen=True)
class PartialSum(FedProx):
    """The exact sum of the updates, each times its number of examples: no model, but an update for another server.

    Participants see FedAvg or FedProx, whichever the parent has.

    Attributes:
        mu: The weight of the proximal term of FedProx; 0 for FedAvg.
    """

    name = "partial_sum"
    takes_optimizer = False

    def for_participants(self) -> BaseRule:
        """Returns what the parent asks for."""
        return FedProx(self.mu) if self.mu else FedAvg()

    def check_model(self, model: Manifest, tensors: TensorSelection) -> None:
        """Checks that updates have sums."""
        check_tensors(f"spec.aggregation.{self.name}", tensors.trained(model))
