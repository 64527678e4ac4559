"""The trimmed mean (Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, arXiv 1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.options import check_range
from fedround_server.aggregators.rule import ColumnRule
from fedround_server.aggregators.sorting import mean_of_sorted, sort_columns

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrimmedMean(ColumnRule):
    """The mean of each element without its smallest and its largest values, without weights.

    Attributes:
        beta: The part of the values that is cut off at each end, 0 <= beta < 0.5, rounded down to whole updates.
    """

    name = "trimmed_mean"
    beta: float = 0.1

    def check(self) -> None:
        """Checks beta."""
        check_range("beta", self.beta, 0, 0.5, open_end=True)

    def reduce(self, values: Tensor) -> Tensor:
        """Returns the trimmed means."""
        sort_columns(values)
        cut = self.cut(len(values))
        return mean_of_sorted(values[cut : len(values) - cut])

    def cut(self, num_updates: int) -> int:
        """Returns how many values are cut off at each end."""
        # 0.29 * 100 is a little less than 29 in float64.
        return min(int(self.beta * num_updates * (1 + 2.0**-50)), (num_updates - 1) // 2)
