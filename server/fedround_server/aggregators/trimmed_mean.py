"""The trimmed mean (Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, arXiv 1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.options import check_range
from fedround_server.aggregators.rule import ColumnRule
from fedround_server.aggregators.sorting import sort_columns

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
        return mean_of_sorted(values, int(self.beta * len(values)))


def mean_of_sorted(values: Tensor, cut: int) -> Tensor:
    """Returns the means of sorted columns without `cut` values at each end: shape (columns,), float64."""
    kept = values[cut : len(values) - cut]
    # Scaled first, so that the sum of large float64 numbers does not overflow.
    scale = 0.5 ** len(kept).bit_length()
    total = kept[0].double().mul_(scale)
    for row in kept[1:]:
        total.add_(row.double().mul_(scale))
    return total.div_(len(kept) * scale)
