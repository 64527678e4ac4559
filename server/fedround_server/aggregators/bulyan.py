"""Bulyan (El Mhamdi et al., The Hidden Vulnerability of Distributed Learning, ICML 2018, arXiv 1802.07927)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.krum import krum_scores
from fedround_server.aggregators.options import check_range
from fedround_server.aggregators.rule import ColumnRule, Updates
from fedround_server.aggregators.sorting import sort_columns

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
            scores = krum_scores(distances[left][:, left], self.f)
            best = left[min(range(len(left)), key=lambda index: (scores[index], index))]
            chosen.append(best)
            left.remove(best)
        return sorted(chosen)

    def reduce(self, values: Tensor) -> Tensor:
        """Returns the means of the n - 4 f values that are nearest to the median."""
        import torch

        sort_columns(values)
        rows = values.double()
        count = len(rows) - 2 * self.f
        middle = len(rows) // 2
        median = rows[middle] if len(rows) % 2 else (rows[middle - 1] + rows[middle]) / 2
        best = torch.full_like(median, torch.inf)
        result = torch.zeros_like(median)
        # Of sorted values, those nearest to any number follow each other.
        for start in range(len(rows) - count + 1):
            window = rows[start : start + count]
            reach = torch.maximum(median - window[0], window[-1] - median)
            mean = window[0] / count
            for row in window[1:]:
                mean.add_(row / count)
            result = torch.where(reach < best, mean, result)
            best = torch.minimum(best, reach)
        return result
