"""The coordinate-wise median (Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, arXiv 1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.rule import ColumnRule
from fedround_server.aggregators.sorting import sort_columns

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Median(ColumnRule):
    """The median of each element, without weights; of an even number of updates, the mean of the two in the middle."""

    name = "median"

    def reduce(self, values: Tensor) -> Tensor:
        """Returns the medians."""
        sort_columns(values)
        middle = len(values) // 2
        if len(values) % 2:
            return values[middle].double()
        # Halved before they are added: the sum of two large float64 numbers overflows.
        return values[middle - 1].double().mul_(0.5).add_(values[middle].double().mul_(0.5))
