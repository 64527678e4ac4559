"""What is decided about the updates of a round before their elements are aggregated."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedround_server.aggregators.clipping import Clipping
from fedround_server.aggregators.mixing import Mixing
from fedround_server.aggregators.rule import ColumnRule, LinearRule, NoAggregate, Shares, Updates
from fedround_server.domain.aggregation import Aggregation
from fedround_server.engine.exact import Combination, combine
from fedround_server.engine.format.dtypes import narrow, widen
from fedround_server.engine.parts import Block

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Linear:
    """The aggregate is a linear combination of the updates.

    Attributes:
        shares: The combination.
        scales: What clipping multiplies the differences by; None if nothing is clipped.
    """

    shares: Shares
    scales: Sequence[float] | None = None

    @property
    def is_mean(self) -> bool:
        """Whether the model does not matter."""
        return fsum(self.shares.coefficients) == self.shares.divisor

    def aggregate(self, block: Block) -> Tensor:
        """Returns the aggregate: shape (elements,), in the model's dtype, correctly rounded."""
        coefficients, divisor = list(self.shares.coefficients), self.shares.divisor
        vectors = block.updates()
        if not self.is_mean:
            vectors.append(block.model)
            coefficients.append(fsum([divisor, *(-one for one in self.shares.coefficients)]))
        used = [(vector, one) for vector, one in zip(vectors, coefficients, strict=True) if one]
        if not used:
            return block.model.clone()
        combination = Combination([one for _, one in used], divisor)
        return combine([vector for vector, _ in used], combination, block.stored.dtype)

    def difference(self, block: Block, kept: Tensor | None) -> Tensor:
        """Returns the aggregate less the model, summed in the order of the updates.

        Args:
            block: The elements.
            kept: The difference that the round before has made: shape (elements,), float64; None for zeros.

        Returns:
            Shape (elements,), float64.
        """
        model = widen(block.model).double()
        total = torch.zeros_like(model)
        for update, coefficient in zip(block.updates(), self.shares.coefficients, strict=True):
            if coefficient:
                # Two operations: a fused one would make the bits depend on the processor.
                total.add_((widen(update).double() - model).mul_(coefficient))
        total.div_(self.shares.divisor)
        if self.shares.kept and kept is not None:
            total.add_(kept.mul(self.shares.kept))
        return total


@dataclass(frozen=True, slots=True)
class Columns:
    """The aggregate of each element is computed from the values of all updates.

    Attributes:
        rule: How.
        chosen: The indices of the updates, or of the rows of `mixed`, that take part.
        mixed: What each difference from the model is replaced by, as multiples of all of them; None for itself.
        scales: What clipping multiplies the differences by; None if nothing is clipped.
    """

    rule: ColumnRule
    chosen: Sequence[int]
    mixed: Matrix | None
    scales: Sequence[float] | None = None

    def aggregate(self, block: Block) -> Tensor:
        """Returns the aggregate: shape (elements,), in the model's dtype."""
        return narrow(self._reduced(block), block.stored.dtype)

    def difference(self, block: Block, kept: Tensor | None) -> Tensor:
        """Returns the aggregate less the model: shape (elements,), float64."""
        return self._reduced(block) - widen(block.model).double()

    def _reduced(self, block: Block) -> Tensor:
        updates = [widen(update) for update in block.updates()]
        if self.mixed is None:
            return self.rule.reduce(torch.stack([updates[index] for index in self.chosen]))
        model = widen(block.model).double()
        differences = [update.double() - model for update in updates]
        rows = []
        for index in self.chosen:
            row = model.clone()
            for difference, coefficient in zip(differences, self.mixed[index].tolist(), strict=True):
                if coefficient:
                    row.add_(difference * coefficient)
            rows.append(row)
        return self.rule.reduce(torch.stack(rows))


Decision = Linear | Columns


def needs_products(aggregation: Aggregation) -> bool:
    """Returns whether the inner products of the updates have to be known first."""
    rule = aggregation.rule
    staged = aggregation.clipping is not None or aggregation.mixing is not None
    return staged or (isinstance(rule, LinearRule | ColumnRule) and rule.needs_products)


def inner_products(block: Block, kept: Tensor | None, count: int) -> Tensor:
    """Returns what some elements contribute to inner products of the updates' differences from the model.

    The model is subtracted first: inner products of the updates themselves would lose the digits in which they differ.

    Args:
        block: The elements.
        kept: The difference that the round before has made: shape (elements,), float64; None for zeros.
        count: The number of updates.

    Returns:
        Shape (count + 1, count + 1), float64: of each pair of updates, and in the last row and column with `kept`.
    """
    model = widen(block.model).double()
    rows = torch.zeros(count + 1, len(block), dtype=torch.float64)
    for row, update in zip(rows[:count], block.updates(), strict=True):
        row.copy_(widen(update)).sub_(model)
    if kept is not None:
        rows[count].copy_(kept)
    return rows @ rows.T


def decide(aggregation: Aggregation, updates: Updates) -> Decision:
    """Decides how the updates of a round are aggregated.

    Args:
        aggregation: Its stages.
        updates: The updates, with their inner products if `needs_products`.

    Raises:
        NoAggregate: There are too few, or the rule does not find the ones that it needs.
    """
    rule = aggregation.rule
    mixed: Matrix | None = None
    scales: Sequence[float] | None = None
    if isinstance(aggregation.clipping, Clipping):
        scales = aggregation.clipping.scales(updates.products)
        updates, mixed = updates.scaled(scales), np.diag(scales)
    if isinstance(aggregation.mixing, Mixing):
        matrix = aggregation.mixing.matrix(updates)
        updates, mixed = updates.mixed(matrix), matrix if mixed is None else matrix @ mixed
    if len(updates) < rule.min_updates():
        made = "updates" if aggregation.mixing is None else "mixed updates"
        raise NoAggregate(
            f"{rule.name} with these options needs {rule.min_updates()} {made}, and there are {len(updates)}"
        )
    if isinstance(rule, ColumnRule):
        return Columns(rule, rule.chosen(updates), mixed, scales)
    if not isinstance(rule, LinearRule):
        raise TypeError(f"{rule.name} is neither linear nor by columns")
    shares = rule.shares(updates)
    if mixed is None:
        return Linear(shares, scales)
    coefficients = (np.array(shares.coefficients, dtype=np.float64) @ mixed).tolist()
    return Linear(Shares(coefficients, shares.divisor, shares.kept), scales)
