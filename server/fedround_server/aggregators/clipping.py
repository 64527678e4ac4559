"""Clipping: scales updates that are far from the round's model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from fedround_server.aggregators.options import check_positive
from fedround_server.aggregators.rule import BaseStage

if TYPE_CHECKING:
    import numpy as np


class Clipping(BaseStage):
    """Scales the differences of updates from the round's model."""

    @abstractmethod
    def scales(self, products: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
        """Returns what each difference is multiplied by.

        Args:
            products: Inner products of the differences: shape (updates, updates), float64.
        """


@dataclass(frozen=True)
class FixedClipping(Clipping):
    """Norm clipping (Sun et al., Can You Really Backdoor Federated Learning?, 2019, arXiv 1911.07963).

    Attributes:
        norm: No update is farther from the round's model (L2); one that is comes nearer on a straight line.
    """

    name = "fixed"
    norm: float = 1.0

    def check(self) -> None:
        """Checks the norm."""
        check_positive("norm", self.norm)

    def scales(self, products: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
        """Returns norm / ||difference||, at most 1."""
        norms = [sqrt(square) for square in products.diagonal().tolist()]
        return [min(1.0, self.norm / norm) if norm else 1.0 for norm in norms]
