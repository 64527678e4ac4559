"""What is decided about the updates of a round before their elements are aggregated."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp, fsum, isfinite
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
Places = np.ndarray[Any, np.dtype[np.bool_]]

FAR = 2.0**450
"""An update that is farther than this from the model has no part in what depends on inner products."""
ROUNDING = 2.0**-48
"""Coefficients whose sum differs from the divisor by no more than this part of it are those of a mean."""


@dataclass(frozen=True, slots=True)
class Linear:
    """The aggregate is a linear combination of the updates.

    Attributes:
        shares: The combination.
        scales: What clipping multiplies the differences by; None if nothing is clipped.
        is_nested: Whether updates may be partial sums: then `difference` is correctly rounded, so that it does not
            matter which updates were added before.
    """

    shares: Shares
    scales: Sequence[float] | None = None
    is_nested: bool = False

    @property
    def is_mean(self) -> bool:
        """Whether the model does not matter."""
        return fsum(self.shares.coefficients) == self.shares.divisor

    def aggregate(self, block: Block) -> Tensor:
        """Returns the aggregate: shape (elements,), in the model's dtype, correctly rounded."""
        divisor = self.shares.divisor
        vectors, coefficients = block.summands(self.shares.coefficients)
        if not self.is_mean:
            vectors.append(block.model)
            coefficients.append(fsum([divisor, *(-one for one in self.shares.coefficients)]))
        used = [(vector, one) for vector, one in zip(vectors, coefficients, strict=True) if one]
        if not used:
            return block.model.clone()
        combination = Combination([one for _, one in used], divisor)
        return combine([vector for vector, _ in used], combination, block.stored.dtype)

    def difference(self, block: Block, kept: Tensor | None) -> Tensor:
        """Returns the aggregate less the model, summed in the order of the updates unless these may be partial sums.

        Args:
            block: The elements.
            kept: The difference that the round before has made: shape (elements,), float64; None for zeros.

        Returns:
            Shape (elements,), float64.
        """
        if self.is_nested:
            vectors, coefficients = block.summands(self.shares.coefficients)
            combination = Combination([*coefficients, -fsum(self.shares.coefficients)], self.shares.divisor)
            return combine([*vectors, block.model], combination, torch.float64)
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
        values = self._values(block)
        result = self.rule.reduce(values)
        # The sign of a zero among zeros with both signs would depend on its place.
        return result.add_(0.0) if len(values) > 1 else result

    def _values(self, block: Block) -> Tensor:
        """Returns what the rule reduces: shape (updates, elements)."""
        updates = [widen(update) for update in block.updates()]
        if self.mixed is None:
            return torch.stack([updates[index] for index in self.chosen])
        model = widen(block.model).double()
        rows = []
        for index in self.chosen:
            used = [(one, update) for one, update in zip(self.mixed[index].tolist(), updates, strict=True) if one]
            if [one for one, _ in used] == [1.0]:
                rows.append(used[0][1].double())
                continue
            row = model.clone()
            for coefficient, update in used:
                row.add_((update.double() - model).mul_(coefficient))
            rows.append(row)
        return torch.stack(rows)


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


def bounded(total: Tensor) -> tuple[Matrix, Matrix]:
    """Returns the inner products of all elements as `Updates` has them.

    Updates that are farther from the model than FAR are at that distance, and orthogonal to all others: their inner
    products would overflow.

    Args:
        total: The sum of what `inner_products` returns; overwritten.

    Raises:
        NoAggregate: An update has NaN.
    """
    total = total.add(total.T).div_(2)
    squares = total.diagonal().clone()
    if squares.isnan().any():
        raise NoAggregate("an update has values that are not finite")
    is_far = ~(squares < FAR**2)
    total[is_far] = 0
    total[:, is_far] = 0
    total.diagonal()[is_far] = FAR**2
    return total[:-1, :-1].numpy(), total[-1].numpy()


def decide(aggregation: Aggregation, updates: Updates, norm: float | None = None) -> Decision:
    """Decides how the updates of a round are aggregated.

    Args:
        aggregation: Its stages.
        updates: The updates, with their inner products if `needs_products`.
        norm: To which clipping scales updates; None for its first norm.

    Raises:
        NoAggregate: There are too few, the rule does not find the ones that it needs, or its numbers overflow.
    """
    rule = aggregation.rule
    if (shortage := aggregation.shortage(len(updates))) is not None:
        raise NoAggregate(shortage)
    mixed: Matrix | None = None
    scales: Sequence[float] | None = None
    is_far = updates.products.diagonal() >= FAR**2
    if isinstance(aggregation.clipping, Clipping):
        scales = aggregation.clipping.scales(updates.products, norm or aggregation.clipping.first_norm())
        updates, mixed = updates.scaled(scales), np.diag(scales)
    if isinstance(aggregation.mixing, Mixing):
        matrix = aggregation.mixing.matrix(updates)
        updates, mixed = updates.mixed(matrix), matrix if mixed is None else matrix @ mixed
    if isinstance(rule, ColumnRule):
        return Columns(rule, rule.chosen(updates), None if mixed is None else mixed * ~is_far, scales)
    if not isinstance(rule, LinearRule):
        raise TypeError(f"{rule.name} is neither linear nor by columns")
    return Linear(_combined(rule.name, rule.shares(updates), mixed, is_far), scales)


def _combined(name: str, shares: Shares, mixed: Matrix | None, is_far: Places) -> Shares:
    """Returns the combination of the updates that a combination of mixed ones makes, without those that are far."""
    coefficients: Sequence[float] = shares.coefficients
    if mixed is not None:
        coefficients = (np.array(coefficients, dtype=np.float64) @ mixed).tolist()
    if is_far.any():
        coefficients = [0.0 if far else one for one, far in zip(coefficients, is_far.tolist(), strict=True)]
    if not shares.divisor or not all(map(isfinite, (*coefficients, shares.divisor, shares.kept))):
        raise NoAggregate(f"{name} with these options finds no coefficients that float64 holds")
    total, divisor = fsum(coefficients), shares.divisor
    if total and abs(total - divisor) <= ROUNDING * divisor:
        # A mean of equal updates is to be exactly that.
        coefficients = _with_exact_sum(coefficients)
        divisor = fsum(coefficients)
    return Shares(coefficients, divisor, shares.kept)


def _with_exact_sum(coefficients: Sequence[float]) -> Sequence[float]:
    """Rounds coefficients, as little as possible, to numbers of which float64 holds the sum; integers stay so."""
    if fsum(coefficients) <= 2**53 and all(float(one).is_integer() for one in coefficients):
        return coefficients
    unit = 2.0 ** max(frexp(fsum(map(abs, coefficients)))[1] - 52, -1074)
    return [round(one / unit) * unit for one in coefficients]
