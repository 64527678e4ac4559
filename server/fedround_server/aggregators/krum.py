"""Krum and Multi-Krum (Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, arXiv 1703.02757)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedround_server.aggregators.options import check_range
from fedround_server.aggregators.rule import LinearRule, Shares, Updates

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Krum(LinearRule):
    """The update that is nearest to most others, without weights.

    Attributes:
        f: How many updates may be arbitrary; the round needs 2 f + 3.
    """

    name = "krum"
    selects = True
    needs_products = True
    f: int = 1

    def check(self) -> None:
        """Checks f."""
        check_range("f", self.f, 0)

    def min_updates(self) -> int:
        """Returns 2 f + 3."""
        return 2 * self.f + 3

    def shares(self, updates: Updates) -> Shares:
        """Selects the updates with the smallest scores."""
        chosen = krum_order(updates.distances(), self.f)[: self._count(len(updates))]
        return Shares([1 if index in chosen else 0 for index in range(len(updates))], len(chosen))

    def _count(self, num_updates: int) -> int:
        return 1


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the updates that Krum prefers, without weights.

    Attributes:
        f: How many updates may be arbitrary; the round needs 2 f + 3.
        m: How many updates are averaged; 0 for all but f.
    """

    name = "multi_krum"
    m: int = 0

    def check(self) -> None:
        """Checks f and m."""
        super().check()
        check_range("m", self.m, 0)

    def min_updates(self) -> int:
        """Returns 2 f + 3, or f + m."""
        return max(super().min_updates(), self.f + self.m)

    def _count(self, num_updates: int) -> int:
        return self.m or num_updates - self.f


def krum_order(distances: np.ndarray[Any, np.dtype[np.float64]], f: int) -> list[int]:
    """Returns the indices of the updates, that with the smallest score first.

    The score is the sum of the squared distances to the nearest n - f - 2 others. If that is one, two updates next to
    each other have the same score; then the sums of all distances decide.

    Args:
        distances: Squared distances, shape (n, n).
        f: How many updates may be arbitrary.
    """
    count = max(1, len(distances) - f - 2)
    keys = []
    for index, row in enumerate(distances.tolist()):
        others = sorted(row[:index] + row[index + 1 :])
        keys.append((sum(others[:count]), sum(others), index))
    return [index for _, _, index in sorted(keys)]
