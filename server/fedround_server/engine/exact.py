"""Correctly rounded linear combinations: the number of a dtype that is nearest to the exact result, ties to even.

The result depends on the summands and their coefficients alone: not on their order, nor on threads, vector lengths or
processors. It is found in steps, each for the elements that the steps before did not decide:

1. A float64 sum, with one bound of its error for all elements. If both ends of an interval round to the same number,
   that is it.
2. The same sum where the magnitudes of the summands show that it is exact. This decides most exact ties, which are
   frequent: of the means of two float32 numbers, half are ties.
3. A sum with its rounding errors, which are floating-point numbers (Ogita, Rump and Oishi, Accurate Sum and Dot
   Product, SIAM J. Sci. Comput. 26(6), 2005).
4. Rational arithmetic. What comes so far is a sum that spans three float64 numbers.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from fedround_server.engine.format.dtypes import narrow, widen

UNIT = 2.0**-53
"""The largest relative error of an operation in float64."""
DENORMAL = 2.0**-1074
"""The smallest positive number of float64: twice the largest error of an operation that underflows."""
LARGE, SMALL = 2.0**960, 2.0**-900
"""Between these, the errors of float64 operations are float64 numbers."""
SPLITTER = 2.0**27 + 1
BLOCK = 32 * 1024
"""Numbers that are processed at a time: two float64 blocks fit the second-level cache."""
COLUMNS = 128 * 1024
"""Numbers of all vectors that are processed at a time in the third step."""
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True, slots=True)
class Combination:
    """Which multiples of some vectors are added, and what the sum is divided by.

    Attributes:
        coefficients: One for each vector, finite; float64, or integers that float64 holds.
        divisor: Finite, and not zero; float64, or an integer that float64 holds.
    """

    coefficients: Sequence[float]
    divisor: float

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: The divisor is zero, or float64 does not hold a number.
        """
        numbers = (*self.coefficients, self.divisor)
        if not self.divisor or not all(math.isfinite(float(one)) and float(one) == one for one in numbers):
            raise ValueError(f"{numbers} must be float64 numbers, and the last one not zero")


def combine(vectors: Sequence[Tensor], combination: Combination, dtype: torch.dtype) -> Tensor:
    """Adds multiples of vectors, divides the sum by the divisor, and rounds once.

    An exact zero is negative if all summands are negative zeros, and positive otherwise.

    Args:
        vectors: At least one; each of shape (elements,), in a floating dtype.
        combination: A coefficient for each vector, and the divisor.
        dtype: A floating dtype, of the result.

    Returns:
        Shape (elements,). A number beyond the dtype's range is Inf, or NaN if the dtype has no Inf. What is made of NaN
        or Inf is not finite either.
    """
    bounds = _Bounds.of(vectors, combination)
    if dtype == torch.float64 or not bounds.margin < LARGE * UNIT:
        # Few float64 sums are known well enough.
        result = torch.empty(len(vectors[0]), dtype=dtype)
        undecided = torch.arange(len(result))
    else:
        total = _sum(vectors, combination.coefficients)
        result, undecided = _round(total, bounds.margin, combination.divisor, dtype)
        if len(undecided):
            is_exact = _are_exact([widen(vector)[undecided] for vector in vectors], bounds.exact_from)
            exact = undecided[is_exact]
            _bits(result)[exact] = _bits(_Sum.exactly(total[exact]).divided(combination.divisor, dtype)[0])
            undecided = undecided[is_exact.logical_not_()]
    if len(undecided):
        _decide(result, undecided, vectors, combination)
    return result


def _sum(vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Returns the float64 sum of multiples of vectors."""
    # Not a sum with zero, which is never a negative zero.
    total = vectors[0].double() * coefficients[0]
    wide = torch.empty(min(BLOCK, len(total)), dtype=torch.float64)
    for start in range(0, len(total), BLOCK):
        block = total[start : start + BLOCK]
        one = wide[: len(block)]
        for vector, coefficient in zip(vectors[1:], coefficients[1:], strict=True):
            block.add_(one.copy_(vector[start : start + BLOCK]), alpha=coefficient)
    return total


def _round(total: Tensor, margin: float, divisor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns rounded quotients, and the indices of those for which the margin leaves more than one number."""
    result = torch.empty(len(total), dtype=dtype)
    undecided = []
    margins, inverse = torch.tensor([-margin, margin], dtype=torch.float64), 1 / divisor
    wide = torch.empty(min(BLOCK, len(total)), dtype=torch.float64)
    for start in range(0, len(total), BLOCK):
        block = total[start : start + BLOCK]
        low = result[start : start + BLOCK]
        one = wide[: len(block)]
        low.copy_(narrow(torch.add(margins[0], block, alpha=inverse, out=one), dtype))
        high = narrow(torch.add(margins[1], block, alpha=inverse, out=one), dtype)
        if not torch.equal(_bits(low), _bits(high)):
            undecided.append((_bits(low) != _bits(high)).nonzero().flatten().add_(start))
    return result, torch.cat(undecided) if undecided else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What the magnitudes of vectors say of the float64 sums of their multiples.

    Attributes:
        margin: The error of a quotient is less, that of one more addition included.
        exact_from: A sum is exact if all its numbers are zero or have at least this magnitude.
    """

    margin: float
    exact_from: float

    @classmethod
    def of(cls, vectors: Sequence[Tensor], combination: Combination) -> "_Bounds":
        coefficients, divisor = combination.coefficients, abs(combination.divisor)
        largest = sum(abs(one) * _largest(vector) for vector, one in zip(vectors, coefficients, strict=True))
        # Each operation errs by UNIT of at most the largest sum. Twice that, for terms of higher order.
        operations = len(vectors) + 4
        margin = (2 * operations * UNIT * largest + operations * DENORMAL) / divisor + 4 * DENORMAL
        exact_from = math.inf
        if largest < LARGE and all(float(one).is_integer() for one in coefficients):
            # All summands are multiples of the last place of the largest sum.
            digits = max(1 - round(math.log2(torch.finfo(vector.dtype).eps)) for vector in vectors)
            exact_from = 2.0 ** (math.frexp(largest)[1] + 1 - 53 + digits)
        return cls(margin, exact_from)


def _largest(vector: Tensor) -> float:
    if not len(vector):
        return 0.0
    low, high = torch.aminmax(widen(vector))
    return max(-float(low), float(high))


def _are_exact(parts: Sequence[Tensor], exact_from: float) -> Tensor:
    """Returns for which elements all parts are zero or have some magnitude."""
    is_exact = torch.ones(len(parts[0]), dtype=torch.bool)
    for part in parts:
        is_exact.logical_and_((part.abs() >= exact_from).logical_or_(part == 0))
    return is_exact


def _bits(numbers: Tensor) -> Tensor:
    """Returns the same memory as integers."""
    return numbers.view(INTEGERS[numbers.dtype.itemsize])


def _decide(result: Tensor, places: Tensor, vectors: Sequence[Tensor], combination: Combination) -> None:
    """Computes some elements of a result anew, with the errors of all operations."""
    for some in torch.split(places, max(1, COLUMNS // len(vectors))):
        columns = torch.stack([widen(vector)[some].double() for vector in vectors])
        total = _compensated_sum(columns, combination.coefficients)
        low, high = total.divided(combination.divisor, result.dtype)
        _bits(result)[some] = _bits(low)
        undecided = (_bits(low) != _bits(high)).logical_or_(total.is_extreme).nonzero().flatten()
        if len(undecided):
            # Rounding to odd prepares for the one rounding to a narrower type.
            to_odd = result.dtype != torch.float64
            exact = [_rational(one, combination, to_odd=to_odd) for one in columns[:, undecided].T.tolist()]
            _bits(result)[some[undecided]] = _bits(narrow(torch.tensor(exact, dtype=torch.float64), result.dtype))


@dataclass(frozen=True, slots=True)
class _Sum:
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
    def exactly(cls, sums: Tensor) -> "_Sum":
        """Returns float64 sums that are exact, in a range without extremes."""
        zeros = torch.zeros_like(sums)
        return cls(sums, zeros, zeros, torch.zeros_like(sums, dtype=torch.bool))

    def divided(self, divisor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the quotients, rounded to a dtype: bounds from below and above, equal where they are exact."""
        quotient = self.high / divisor
        self.is_extreme.logical_or_(_is_extreme(quotient, self.high))
        product = quotient * divisor
        # The remainder of a rounded quotient is a float64 number, and so is each difference here.
        remainder = (self.high - product) - _product_error(quotient, divisor, product)
        rest, error = _two_sum(remainder, self.low)
        second = rest / divisor
        product = second * divisor
        is_exact = (product == rest).logical_and_(_product_error(second, divisor, product) == 0)
        is_exact.logical_and_((rest == 0).logical_or_(rest.abs() > SMALL))
        is_exact.logical_and_(error == 0).logical_and_(self.lost == 0)
        margin = (error.abs() + 2 * self.lost) / abs(divisor) + 2 * UNIT * second.abs() + DENORMAL
        margin.mul_(2).masked_fill_(is_exact, 0)
        return _rounded(quotient, second - margin, dtype), _rounded(quotient, second + margin, dtype)


def _compensated_sum(columns: Tensor, coefficients: Sequence[float]) -> _Sum:
    """Adds multiples of the rows of a float64 matrix."""
    factors = torch.tensor(coefficients, dtype=torch.float64).unsqueeze(1)
    products = columns * factors
    total, errors = _tree_sum(products)
    if any(coefficient not in (0, 1) for coefficient in coefficients):
        errors = torch.cat([errors, _product_error(columns, factors, products)])
    low, lost = _tree_sum(errors) if errors.any() else (torch.zeros_like(total), errors[:1])
    high, rest = _two_sum(total, low)
    is_extreme = _is_extreme(products, columns).logical_and_(factors != 0).any(0)
    return _Sum(torch.where(low == 0, total, high), rest, lost.abs().sum(0), is_extreme)


def _tree_sum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Adds the rows of a matrix, in pairs; returns the sum, and the rounding errors of all additions."""
    errors = []
    while len(rows) > 1:
        total, error = _two_sum(rows[0 : len(rows) - 1 : 2], rows[1::2])
        errors.append(error)
        rows = torch.cat([total, rows[-1:]]) if len(rows) % 2 else total
    return rows[0], torch.cat(errors) if errors else torch.zeros_like(rows)


def _is_extreme(result: Tensor, operand: Tensor) -> Tensor:
    """Returns where the result of an operation may have an error that is no float64 number."""
    size = result.abs()
    return (size >= LARGE).logical_or_((size < SMALL).logical_and_(operand != 0))


def _two_sum(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a sum and its rounding error (Knuth, The Art of Computer Programming, volume 2, 4.2.2)."""
    total = first + second
    share = total - first
    return total, (first - (total - share)).add_(second - share)


def _product_error(first: Tensor, second: Tensor | float, product: Tensor) -> Tensor:
    """Returns the rounding error of a product (Dekker, Numerische Mathematik 18, 1971)."""
    scaled = first * SPLITTER
    high = scaled - (scaled - first)
    low = first - high
    split = second * SPLITTER
    second_high = split - (split - second)
    second_low = second - second_high
    error = (high * second_high).sub_(product).add_(high * second_low).add_(low * second_high)
    return error.add_(low * second_low)


def _rounded(number: Tensor, rest: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds sums of two numbers, the first of which is much larger, once."""
    total, error = _two_sum(number, rest)
    # Of zeros, the first one has the sign.
    total = torch.where(total == 0, number, total)
    if dtype == torch.float64:
        return total
    bits = total.view(torch.int64)
    # To odd: a sum that is not exact, and whose last bit is 0, becomes its neighbour beyond the exact one.
    away = torch.where((error > 0) == (total > 0), 1, -1)
    bits.add_(away.masked_fill_((error == 0).logical_or_(bits.bitwise_and(1) == 1), 0))
    return narrow(total, dtype)


def _rational(column: Sequence[float], combination: Combination, *, to_odd: bool) -> float:
    """Returns one element, computed with rational numbers: the nearest number, or a neighbour that is odd."""
    if not all(map(math.isfinite, column)):
        return math.nan
    pairs = list(zip(column, combination.coefficients, strict=True))
    terms = [Fraction(one) * Fraction(other) for one, other in pairs]
    exact = sum(terms, Fraction()) / Fraction(combination.divisor)
    if not exact:
        # The sign is that of an addition of the summands, one by one.
        signs = [math.copysign(1, one) * math.copysign(1, other) for one, other in pairs]
        sign = -1.0 if not any(terms) and max(signs) < 0 else 1.0
        return sign * math.copysign(0.0, combination.divisor)
    try:
        nearest = float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
    if not to_odd or nearest == exact:
        return nearest
    other = math.nextafter(nearest, math.inf if exact > nearest else -math.inf)
    return nearest if _is_odd(nearest) else other


def _is_odd(number: float) -> bool:
    return bool(struct.pack("<d", number)[0] & 1)
