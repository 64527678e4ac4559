"""Clipping: scales updates that are far from the round's model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from fedround_server.aggregators.options import check_positive

if TYPE_CHECKING:
    import numpy as np


class Clipping(ABC):
    """Scales the differences of updates from the round's model."""

    name: ClassVar[str]

    @abstractmethod
    def check(self) -> None:
        """Checks the options.

        Raises:
            OptionInvalid: One has a value that it cannot have.
        """

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
