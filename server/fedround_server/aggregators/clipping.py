"""Clipping: scales updates that are far from the round's model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import exp, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from fedround_server.aggregators.options import check_positive, check_range
from fedround_server.aggregators.rule import BaseStage

if TYPE_CHECKING:
    import numpy as np


SMALLEST, LARGEST = 1e-30, 1e30
"""The range of an adaptive norm, and of a fixed one with differential privacy."""


class Clipping(BaseStage):
    """Scales the differences of updates from the round's model to a norm, which no update exceeds then.

    Attributes:
        adapts: Whether the norm follows those of the updates.
    """

    adapts: ClassVar[bool] = False

    @abstractmethod
    def first_norm(self) -> float:
        """Returns the norm of the first round."""

    def scales(self, products: np.ndarray[Any, np.dtype[np.float64]], norm: float) -> list[float]:
        """Returns what each difference is multiplied by: norm / ||difference||, at most 1.

        Args:
            products: Inner products of the differences: shape (updates, updates), float64.
            norm: The norm of the round.
        """
        norms = [sqrt(square) for square in products.diagonal().tolist()]
        return [min(1.0, norm / one) if one else 1.0 for one in norms]


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

    def first_norm(self) -> float:
        """Returns the norm."""
        return self.norm


@dataclass(frozen=True)
class AdaptiveClipping(Clipping):
    """Adaptive clipping (Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS 2021, arXiv
    1905.03871).

    Attributes:
        quantile: The part of the updates that is to be within the norm, in [0, 1].
        learning_rate: > 0.
        initial_norm: The norm of the first round, > 0.
        noise_std: Standard deviation of the noise of the number of updates within the norm; None for the default, which
            is none without differential privacy.
    """

    name = "adaptive"
    adapts = True
    quantile: float = 0.5
    learning_rate: float = 0.2
    initial_norm: float = 0.1
    noise_std: float | None = None

    def check(self) -> None:
        """Checks the quantile, the learning rate, the first norm and the noise."""
        check_range("quantile", self.quantile, 0, 1)
        check_positive("learning_rate", self.learning_rate)
        check_range("initial_norm", self.initial_norm, SMALLEST, LARGEST)
        if self.noise_std is not None:
            check_range("noise_std", self.noise_std, 0, LARGEST)

    def first_norm(self) -> float:
        """Returns the norm of the first round."""
        return self.initial_norm

    def next_norm(self, norm: float, within: float) -> float:
        """Returns the norm of the next round: norm * exp(-learning_rate * (within - quantile)).

        Args:
            norm: That of this round.
            within: The part of the updates that were within it; noise may put it out of [0, 1].
        """
        # An exponent beyond this leaves the range whatever the norm was.
        exponent = max(-200.0, min(200.0, -self.learning_rate * (within - self.quantile)))
        return max(SMALLEST, min(LARGEST, norm * exp(exponent)))
