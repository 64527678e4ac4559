"""Bulyan (El Mhamdi et al., The Hidden Vulnerability of Distributed Learning, ICML 2018, arXiv 1802.07927)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.krum import krum_order
from fedround_server.aggregators.options import check_range
from fedround_server.aggregators.rule import ColumnRule, Updates
from fedround_server.aggregators.sorting import mean_of_sorted, median_of_sorted, sort_columns

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Bulyan(ColumnRule):
    """Krum selects n - 2 f updates one after the other; of their values, those next to the median are averaged.

    Attributes:
        f: How many updates may be arbitrary; the round needs 4 f + 3.
    """

    name = "bulyan"
    selects = True
    needs_products = True
    f: int = 1

    def check(self) -> None:
        """Checks f."""
        check_range("f", self.f, 0)

    def min_updates(self) -> int:
        """Returns 4 f + 3."""
        return 4 * self.f + 3

    def chosen(self, updates: Updates) -> list[int]:
        """Returns the updates that Krum selects."""
        distances, left = updates.distances(), list(range(len(updates)))
        chosen: list[int] = []
        while len(chosen) < len(updates) - 2 * self.f:
            chosen.append(left.pop(krum_order(distances[left][:, left], self.f)[0]))
        return sorted(chosen)

    def reduce(self, values: Tensor) -> Tensor:
        """Returns the means of the n - 4 f values that are nearest to the median."""
        import torch

        sort_columns(values)
        median = median_of_sorted(values)
        count = len(values) - 2 * self.f
        # Of sorted values, those nearest to any number follow each other.
        windows = [values[start : start + count] for start in range(2 * self.f + 1)]
        result = mean_of_sorted(windows[0])
        best = _reach(windows[0], median)
        for window in windows[1:]:
            reach = _reach(window, median)
            result = torch.where(reach < best, mean_of_sorted(window), result)
            best = torch.minimum(best, reach)
        return result


def _reach(window: Tensor, median: Tensor) -> Tensor:
    """Returns how far the values of each column are from a number at most: shape (columns,), float64."""
    import torch

    return torch.maximum(median - window[0].double(), window[-1].double() - median)
