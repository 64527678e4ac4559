"""Sums as two float64 numbers, and the errors of operations, which are floating-point numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedround_server.engine.format.dtypes import narrow

UNIT = 2.0**-53
"""The largest relative error of an operation in float64."""
DENORMAL = 2.0**-1074
"""The smallest positive number of float64: twice the largest error of an operation that underflows."""
LARGE, SMALL = 2.0**960, 2.0**-900
"""Between these, the errors of float64 operations are float64 numbers."""
SPLITTER = 2.0**27 + 1
Numbers = TypeVar("Numbers", Tensor, "np.ndarray[Any, np.dtype[np.float64]]")
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def bits(numbers: Tensor) -> Tensor:
    """Returns the same memory as integers."""
    return numbers.view(INTEGERS[numbers.dtype.itemsize])


@dataclass(frozen=True, slots=True)
class Sum:
    """Sums, each as two float64 numbers that do not overlap.

    Attributes:
        high: The nearest float64 numbers.
        low: What is left.
        lost: Bounds of what neither has.
        is_extreme: Where errors of operations may not be float64 numbers: nothing is known there.
    """

    high: Tensor
    low: Tensor
    lost: Tensor
    is_extreme: Tensor

    @classmethod
    def exactly(cls, high: Tensor, low: Tensor | None = None) -> "Sum":
        """Returns sums that are exact, in a range without extremes; without `low`, float64 numbers."""
        zero = torch.zeros(1, dtype=torch.float64)
        return cls(high, zero.expand_as(high) if low is None else low, zero, torch.zeros_like(high, dtype=torch.bool))

    def divided(self, divisor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the quotients, rounded to a dtype: bounds from below and above, equal where they are exact."""
        quotient = self.high / divisor
        self.is_extreme.logical_or_(_is_extreme(quotient, self.high))
        product = quotient * divisor
        # The remainder of a rounded quotient is a float64 number, and so is each difference here.
        remainder = (self.high - product) - _product_error(quotient, divisor, product)
        rest, error = two_sum(remainder, self.low)
        second = rest / divisor
        product = second * divisor
        is_exact = (product == rest).logical_and_(_product_error(second, divisor, product) == 0)
        is_exact.logical_and_((rest == 0).logical_or_(rest.abs() > SMALL))
        is_exact.logical_and_(error == 0).logical_and_(self.lost == 0)
        margin = (error.abs() + 2 * self.lost) / abs(divisor) + 2 * UNIT * second.abs() + DENORMAL
        margin.mul_(2).masked_fill_(is_exact, 0)
        return _rounded(quotient, second - margin, dtype), _rounded(quotient, second + margin, dtype)


def compensated_sum(columns: Tensor, coefficients: Sequence[float]) -> Sum:
    """Adds multiples of the rows of a float64 matrix."""
    factors = torch.tensor(coefficients, dtype=torch.float64).unsqueeze(1)
    products = columns * factors
    total, errors = _tree_sum(products)
    if any(coefficient not in (0, 1) for coefficient in coefficients):
        errors = torch.cat([errors, _product_error(columns, factors, products)])
    low, lost = _tree_sum(errors) if errors.any() else (torch.zeros_like(total), errors[:1])
    high, rest = two_sum(total, low)
    is_extreme = _is_extreme(products, columns).logical_and_(factors != 0).any(0)
    return Sum(torch.where(low == 0, total, high), rest, lost.abs().sum(0), is_extreme)


def _tree_sum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Adds the rows of a matrix, in pairs; returns the sum, and the rounding errors of all additions."""
    errors = []
    while len(rows) > 1:
        total, error = two_sum(rows[0 : len(rows) - 1 : 2], rows[1::2])
        errors.append(error)
        rows = torch.cat([total, rows[-1:]]) if len(rows) % 2 else total
    return rows[0], torch.cat(errors) if errors else torch.zeros_like(rows)


def _is_extreme(result: Tensor, operand: Tensor) -> Tensor:
    """Returns where the result of an operation may have an error that is no float64 number."""
    size = result.abs()
    return (size >= LARGE).logical_or_((size < SMALL).logical_and_(operand != 0))


def two_sum(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a sum and its rounding error (Knuth, The Art of Computer Programming, volume 2, 4.2.2)."""
    total = first + second
    share = total - first
    return total, (first - (total - share)).add_(second - share)


def _product_error(first: Numbers, second: Numbers | float, product: Numbers) -> Numbers:
    """Returns the rounding error of a product (Dekker, Numerische Mathematik 18, 1971); of torch or of numpy."""
    scaled = first * SPLITTER
    high = scaled - (scaled - first)
    low = first - high
    split = second * SPLITTER
    second_high = split - (split - second)
    second_low = second - second_high
    return ((high * second_high - product) + high * second_low + low * second_high) + low * second_low


def _rounded(number: Tensor, rest: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds sums of two numbers, the first of which is much larger, once."""
    if dtype == torch.float64:
        total = number + rest
        # Of zeros, the first one has the sign.
        return torch.where(total == 0, number, total)
    total, error = two_sum(number, rest)
    total = torch.where(total == 0, number, total)
    places = bits(total)
    # To odd: a sum that is not exact, and whose last bit is 0, becomes its neighbour beyond the exact one.
    away = torch.where((error > 0) == (total > 0), 1, -1)
    places.add_(away.masked_fill_((error == 0).logical_or_(places.bitwise_and(1) == 1), 0))
    return narrow(total, dtype)


def divided(sums: Tensor, divisor: float, dtype: torch.dtype) -> Tensor:
    """Divides float64 numbers, in a range without extremes, and rounds the quotients once to a narrower dtype."""
    # They are few: numpy's operations begin several times as fast as torch's.
    numbers = sums.numpy()
    quotient = numbers / divisor
    product = quotient * divisor
    remainder = (numbers - product) - _product_error(quotient, divisor, product)
    away = np.where((remainder > 0) == ((quotient > 0) == (divisor > 0)), 1, -1)
    places = quotient.view(np.int64)
    places += np.where((remainder == 0) | (places & 1 == 1), 0, away)
    return narrow(torch.from_numpy(quotient), dtype)
