"""Correctly rounded linear combinations: the number of a dtype that is nearest to the exact result, ties to even.

The result depends on the summands and their coefficients alone: not on their order, nor on threads, vector lengths or
processors. It is found in steps, each for the elements that the steps before did not decide:

1. A float64 sum, with one bound of its error for all elements of a block. If both ends of an interval round to the same
   number, that is it. For float64 results, two sums: one of the leading bits of all numbers, which is exact, and one of
   what is left (Ozaki, Ogita, Oishi and Rump, Error-free Transformations of Matrix Multiplication, Numerical Algorithms
   59, 2012).
2. The same sum where the magnitudes of the summands show that it is exact. This decides most exact ties, which are
   frequent: of the means of two float32 numbers, half are ties.
3. A sum with its rounding errors, which are floating-point numbers (Ogita, Rump and Oishi, Accurate Sum and Dot
   Product, SIAM J. Sci. Comput. 26(6), 2005).
4. Rational arithmetic. What comes so far is a sum that spans three float64 numbers.
"""

import math
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedround_server.engine.double import DENORMAL, LARGE, SMALL, UNIT, Sum, bits, compensated_sum, divided, two_sum
from fedround_server.engine.format.dtypes import NARROW, narrow, widen

BLOCK = 64 * 1024
"""Elements that are processed at a time, at most."""
SMALLEST_BLOCK = 2 * 1024
NUMBERS = 512 * 1024
"""Numbers of all vectors that are processed at a time: fewer cost more for each operation, more leave the cache."""
MODERATE = (2.0**-400, 2.0**400)
"""Coefficients and divisors between these need no rational numbers."""
COLUMNS = 128 * 1024
"""Numbers of all vectors that are processed at a time in the third step."""
FEW = 64
"""So many numbers of all vectors are added faster with rational numbers than with the rounding errors of tensors."""


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

    def reduced(self) -> "Combination":
        """Returns the same combination without a common factor of its numbers, if they are integers."""
        numbers = (*self.coefficients, self.divisor)
        if not all(float(one).is_integer() for one in numbers):
            return self
        factor = math.gcd(*map(int, numbers))
        # Floats: torch takes no integers beyond 64 bits.
        return Combination([float(int(one) // factor) for one in self.coefficients], float(int(self.divisor) // factor))

    @property
    def is_moderate(self) -> bool:
        """Whether products and quotients with its numbers have errors that float64 holds."""
        numbers = (*self.coefficients, self.divisor)
        return all(one == 0 or MODERATE[0] <= abs(one) <= MODERATE[1] for one in numbers)


def combine(vectors: Sequence[Tensor], combination: Combination, dtype: torch.dtype) -> Tensor:
    """Adds multiples of vectors, divides the sum by the divisor, and rounds once.

    An exact zero is negative if all summands are negative zeros, and positive otherwise. Several threads may call it.

    Args:
        vectors: At least one; each of shape (elements,), in a floating dtype.
        combination: A coefficient for each vector, and the divisor.
        dtype: A floating dtype, of the result.

    Returns:
        Shape (elements,). A number beyond the dtype's range is Inf, or NaN if the dtype has no Inf. What is made of NaN
        or Inf is not finite either.
    """
    if not combination.is_moderate:
        result = torch.empty(len(vectors[0]), dtype=dtype)
        _decide_rationally(result, torch.arange(len(result)), vectors, combination)
        return result
    combining = _Combining(vectors, combination.reduced(), dtype)
    size = min(BLOCK, max(SMALLEST_BLOCK, NUMBERS // len(vectors)))
    for start in range(0, len(vectors[0]), size):
        combining.add(start, size)
    return combining.finish()


class _Combining:
    """Computes a combination block by block, and then the elements that the blocks leave undecided together."""

    def __init__(self, vectors: Sequence[Tensor], combination: Combination, dtype: torch.dtype) -> None:
        self._vectors = vectors
        self._combination = combination
        self._result = torch.empty(len(vectors[0]), dtype=dtype)
        self._factors = torch.tensor(combination.coefficients, dtype=torch.float64)
        self._is_integer = all(float(one).is_integer() for one in combination.coefficients)
        self._digits = max(1 - round(math.log2(torch.finfo(one).eps)) for one in {vector.dtype for vector in vectors})
        self._places: list[Tensor] = []
        self._highs: list[Tensor] = []
        self._lows: list[Tensor] = []
        self._hard: list[Tensor] = []
        self._exact_from = 0.0
        self._smallest = math.inf

    def add(self, start: int, size: int) -> None:
        """Computes the next elements, up to a number of them."""
        coefficients, divisor = self._combination.coefficients, self._combination.divisor
        result = self._result[start : start + size]
        wide, smallest, largest = _widened([vector[start : start + size] for vector in self._vectors])
        reach = sum(abs(one) * size for one, size in zip(coefficients, largest, strict=True))
        margin = _margin(len(wide), reach, divisor)
        if not (reach < LARGE and margin < LARGE * UNIT):
            self._hard.append(torch.arange(start, start + len(result)))
            return
        if not reach:
            result.copy_(_sum(wide, coefficients).div_(divisor))
            return
        low = is_extreme = None
        if result.dtype == torch.float64:
            found = _double_sums(wide, self._factors, max(largest), smallest, is_integer=self._is_integer)
            if found is None:
                self._hard.append(torch.arange(start, start + len(result)))
                return
            sums, exact_from = found
            high, low, is_extreme = sums.high, sums.low, sums.is_extreme
            ends = sums.divided(divisor, result.dtype)
        else:
            high = torch.mv(wide.T, self._factors)
            exact_from = _exact_from(self._digits, reach) if self._is_integer else math.inf
            if smallest >= exact_from and _is_power_of_two(divisor):
                result.copy_(narrow(high.div_(divisor), result.dtype))
                return
            ends = _rounded_apart(high, margin, reach, divisor, result.dtype)
        result.copy_(ends[0])
        differ = bits(ends[0]).numpy() != bits(ends[1]).numpy()
        if is_extreme is not None:
            differ |= is_extreme.numpy()
        # Where they are few, numpy finds them in a third of torch's time.
        places = torch.from_numpy(np.flatnonzero(differ))
        if len(places):
            self._exact_from, self._smallest = max(self._exact_from, exact_from), min(self._smallest, smallest)
            self._highs.append(high[places])
            self._lows.append(torch.zeros(len(places), dtype=torch.float64) if low is None else low[places])
            self._places.append(places.add_(start))

    def finish(self) -> Tensor:
        """Computes what is left, and returns the result."""
        left = list(self._hard)
        if self._places:
            places = torch.cat(self._places)
            left.append(places if len(places) * len(self._vectors) <= FEW else self._decide_exact(places))
        if left:
            _decide(self._result, torch.cat(left), self._vectors, self._combination)
        return self._result

    def _decide_exact(self, places: Tensor) -> Tensor:
        """Computes elements whose sums are exact, and returns the places of the others."""
        high, low, left = torch.cat(self._highs), torch.cat(self._lows), places[:0]
        if self._smallest < self._exact_from:
            # They are few: numpy's operations begin several times as fast as torch's.
            sizes = np.abs(_columns(self._vectors, places).numpy())
            is_exact = ((sizes >= self._exact_from) | (sizes == 0)).all(axis=0)
            if not is_exact.all():
                left = places[torch.from_numpy(np.flatnonzero(~is_exact))]
                kept = torch.from_numpy(np.flatnonzero(is_exact))
                places, high, low = places[kept], high[kept], low[kept]
            zeros = torch.from_numpy(np.flatnonzero(high.numpy() == 0))
            if len(zeros):
                high[zeros] = _sum(_columns(self._vectors, places[zeros]), self._combination.coefficients)
        if self._result.dtype == torch.float64:
            exact = Sum.exactly(high, low)
            first, second = exact.divided(self._combination.divisor, torch.float64)
            undecided = (bits(first) != bits(second)).logical_or_(exact.is_extreme)
            left = torch.cat([left, places[undecided]])
        else:
            first = divided(high, self._combination.divisor, self._result.dtype)
        bits(self._result)[places] = bits(first)
        return left


def _is_power_of_two(number: float) -> bool:
    return abs(math.frexp(number)[0]) == 0.5 and SMALL < abs(number) < 1 / SMALL


class _Scratch(threading.local):
    """Memory of each thread for blocks, which is used again: the system clears memory that is new."""

    def __init__(self) -> None:
        self._memory = [torch.empty(0, dtype=torch.float64)] * 2

    def matrix(self, index: int, rows: int, columns: int) -> Tensor:
        """Returns one of two float64 matrices, with any content."""
        if self._memory[index].numel() < rows * columns:
            self._memory[index] = torch.empty(max(NUMBERS, rows * columns), dtype=torch.float64)
        return self._memory[index][: rows * columns].view(rows, columns)


_scratch = _Scratch()


def _widened(vectors: Sequence[Tensor]) -> tuple[Tensor, float, list[float]]:
    """Returns vectors as rows of a float64 matrix, the smallest magnitude, and the largest one of each row."""
    shape = len(vectors), len(vectors[0])
    wide, spare = _scratch.matrix(0, *shape), _scratch.matrix(1, *shape)
    if any(vector.dtype == torch.float64 for vector in vectors):
        for row, vector in zip(wide, vectors, strict=True):
            row.copy_(widen(vector))
        sizes = torch.abs(wide, out=spare)
    else:
        sizes = spare.view(-1)[: (spare.numel() + 1) // 2].view(torch.float32)[: spare.numel()].view(shape)
        if all(vector.dtype == torch.float32 for vector in vectors):
            torch.cat(list(vectors), out=sizes.view(-1))
        else:
            for row, vector in zip(sizes, vectors, strict=True):
                row.copy_(vector)
        wide.copy_(sizes)
        sizes.abs_()
    # In one operation, torch would take thirty times as long.
    return wide, float(torch.amin(sizes)), torch.amax(sizes, dim=1).tolist()


def _sum(rows: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Adds multiples of the rows of a float64 matrix, one by one: of negative zeros, the sum is a negative zero."""
    total = rows[0] * coefficients[0]
    for row, coefficient in zip(rows[1:], coefficients[1:], strict=True):
        total.add_(row * coefficient)
    return total


def _double_sums(
    wide: Tensor, coefficients: Tensor, largest: float, smallest: float, *, is_integer: bool
) -> tuple[Sum, float] | None:
    """Adds multiples of the rows of a float64 matrix, which is overwritten, almost to twice its precision.

    Args:
        wide: The rows.
        coefficients: One for each, float64.
        largest: The largest magnitude of a number.
        smallest: The smallest one.
        is_integer: Whether all coefficients are integers.

    Returns:
        The sums, and from which magnitude of all numbers they are exact, zeros excepted; None if they are too large or
        too small for this.
    """
    weight = float(coefficients.abs().sum())
    if not all(SMALL < one < LARGE for one in (weight, largest, weight * largest)):
        return None
    # Multiples of the units have 26 bits at most: their products have 52, and so do all sums of them.
    unit = 2.0 ** (math.frexp(largest)[1] - 26)
    factor_unit = 2.0 ** (math.frexp(weight)[1] - 25)
    leading_factors = (coefficients / factor_unit).round_() * factor_unit
    factors = coefficients - leading_factors
    has_rest = bool(factors.any())
    # Adding a number with this last place rounds to a multiple of the unit.
    rounder = 1.5 * 2.0**52 * unit
    leading = torch.add(wide, rounder, out=_scratch.matrix(1, *wide.shape)).sub_(rounder)
    high = torch.mv(leading.T, leading_factors)
    rest = torch.mv(wide.T, factors) if has_rest else None
    low = torch.mv(wide.sub_(leading).T, leading_factors)
    reach = float(leading_factors.abs().sum()) * unit / 2
    if rest is not None:
        low.add_(rest)
        reach += float(factors.abs().sum()) * largest
    exact_from = reach if rest is None and is_integer else math.inf
    operations = len(wide) + 4
    lost = 0.0 if smallest >= exact_from else 2 * operations * UNIT * reach + operations * DENORMAL
    high, low = two_sum(high, low)
    return Sum(
        high, low, torch.tensor([lost], dtype=torch.float64), torch.zeros_like(high, dtype=torch.bool)
    ), exact_from


def _rounded_apart(
    total: Tensor, margin: float, reach: float, divisor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns quotients less and plus a margin, rounded to a dtype narrower than float64."""
    inverse = 1 / divisor
    if dtype not in NARROW:
        return _ends(total, margin, inverse, torch.float32)
    # By way of float32, which rounds twice: the wider margin makes up for the first time.
    wide = margin + 2.0**-23 * reach / abs(divisor) + 2.0**-149
    low, high = (end.to(dtype) for end in _ends(total, wide, inverse, torch.float32))
    places = (bits(low) != bits(high)).nonzero().flatten()
    if len(places):
        for end, one in zip((low, high), _ends(total[places], margin, inverse, dtype), strict=True):
            bits(end)[places] = bits(one)
    return low, high


def _ends(total: Tensor, margin: float, inverse: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    margins = torch.tensor([-margin, margin], dtype=torch.float64)
    low, high = (narrow(torch.add(one, total, alpha=inverse), dtype) for one in margins)
    return low, high


def _margin(count: int, reach: float, divisor: float) -> float:
    """Returns what the errors of quotients are less than, those of one more addition included.

    Args:
        count: How many summands there are.
        reach: What the magnitudes of their sums are at most.
        divisor: What the sums are divided by.
    """
    # Each operation errs by UNIT of at most the largest sum. Twice that, for terms of higher order.
    operations = count + 4
    return (2 * operations * UNIT * reach + operations * DENORMAL) / abs(divisor) + 4 * DENORMAL


def _exact_from(digits: int, reach: float) -> float:
    """Returns from which magnitude of all numbers float64 sums of integer multiples are exact, zeros excepted.

    Args:
        digits: Bits of the numbers' significands.
        reach: What the magnitudes of the sums are at most.
    """
    # All summands are multiples of the last place of the largest sum.
    return 2.0 ** (math.frexp(reach)[1] + 1 - 53 + digits)


def _decide(result: Tensor, places: Tensor, vectors: Sequence[Tensor], combination: Combination) -> None:
    """Computes some elements of a result anew, with the errors of all operations."""
    for some in torch.split(places, max(1, COLUMNS // len(vectors))):
        columns = _columns(vectors, some)
        undecided = torch.arange(len(some))
        if columns.numel() > FEW:
            total = compensated_sum(columns, combination.coefficients)
            low, high = total.divided(combination.divisor, result.dtype)
            bits(result)[some] = bits(low)
            undecided = (bits(low) != bits(high)).logical_or_(total.is_extreme).nonzero().flatten()
        if len(undecided):
            _decide_rationally(result, some[undecided], vectors, combination)


def _decide_rationally(result: Tensor, places: Tensor, vectors: Sequence[Tensor], combination: Combination) -> None:
    """Computes some elements of a result anew, with rational numbers."""
    # Rounding to odd prepares for the one rounding to a narrower type.
    to_odd = result.dtype != torch.float64
    for some in torch.split(places, max(1, COLUMNS // len(vectors))):
        exact = [_rational(one, combination, to_odd=to_odd) for one in _columns(vectors, some).T.tolist()]
        bits(result)[some] = bits(narrow(torch.tensor(exact, dtype=torch.float64), result.dtype))


def _columns(vectors: Sequence[Tensor], places: Tensor) -> Tensor:
    """Returns some elements of each vector: shape (vectors, places), float64."""
    return torch.stack([widen(vector).index_select(0, places).double() for vector in vectors])


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
