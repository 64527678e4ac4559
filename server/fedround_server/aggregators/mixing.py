"""Mixing: replaces updates by averages of some of them, which makes robust rules work on data that differ."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from fedround_server.aggregators.options import MAX_SEED, check_range
from fedround_server.aggregators.rule import BaseStage

if TYPE_CHECKING:
    import numpy as np

    from fedround_server.aggregators.rule import Updates


class Mixing(BaseStage):
    """Linear combinations of the differences of updates from the round's model, without weights."""

    @abstractmethod
    def matrix(self, updates: Updates) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Returns the coefficients: shape (combinations, updates), float64."""

    @abstractmethod
    def updates_for(self, count: int) -> int:
        """Returns how many updates it needs to make so many combinations."""


@dataclass(frozen=True)
class NearestNeighbor(Mixing):
    """Nearest neighbor mixing (Allouah et al., Fixing by Mixing, AISTATS 2023, arXiv 2302.01772).

    Attributes:
        f: Each update becomes the mean of the n - f that are nearest to it, itself included; the round needs 2 f + 1.
    """

    name = "nearest_neighbor"
    f: int = 1

    def check(self) -> None:
        """Checks f."""
        check_range("f", self.f, 0)

    def matrix(self, updates: Updates) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Returns the means of nearest neighbors."""
        import numpy as np

        count = len(updates) - self.f
        matrix = np.zeros((len(updates), len(updates)))
        for index, row in enumerate(updates.distances().tolist()):
            nearest = sorted((distance, other != index, other) for other, distance in enumerate(row))
            matrix[index, [other for _, _, other in nearest[:count]]] = 1 / count
        return matrix

    def updates_for(self, count: int) -> int:
        """Returns the same number, and at least 2 f + 1: each combination is the mean of n - f updates."""
        return max(count, 2 * self.f + 1)


@dataclass(frozen=True)
class Bucketing(Mixing):
    """Bucketing (Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets, ICLR 2022, arXiv 2006.09365).

    Attributes:
        size: Updates in a bucket, drawn at random; each bucket becomes its mean.
        seed: Makes the draw reproducible, with the digests of the updates.
    """

    name = "bucketing"
    size: int = 2
    seed: int = 0

    def check(self) -> None:
        """Checks the size and the seed."""
        check_range("size", self.size, 1)
        check_range("seed", self.seed, 0, MAX_SEED)

    def matrix(self, updates: Updates) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Returns the means of the buckets."""
        import numpy as np

        order = list(range(len(updates)))
        Random(f"{self.seed} {updates.digest}").shuffle(order)  # noqa: S311 - reproducible, not secret
        # The last bucket may be smaller.
        matrix = np.zeros((-(-len(updates) // self.size), len(updates)))
        for row in range(len(matrix)):
            members = order[row * self.size : (row + 1) * self.size]
            matrix[row, members] = 1 / len(members)
        return matrix

    def updates_for(self, count: int) -> int:
        """Returns how many fill all buckets but the last, in which there is one."""
        return (count - 1) * self.size + 1
