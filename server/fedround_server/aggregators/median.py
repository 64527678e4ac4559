"""The coordinate-wise median (Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, arXiv 1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.rule import ColumnRule
from fedround_server.aggregators.sorting import median_of_sorted, sort_columns

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Median(ColumnRule):
    """The median of each element, without weights; of an even number of updates, the mean of the two in the middle."""

    name = "median"

    def reduce(self, values: Tensor) -> Tensor:
        """Returns the medians."""
        sort_columns(values)
        return median_of_sorted(values)
