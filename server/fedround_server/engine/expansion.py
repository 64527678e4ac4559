"""Exact sums of integer multiples of vectors, as a few float64 numbers for each element.

The numbers of an element are its components: their exact sum is the sum, and each is at most half a unit in the last
place of the one before (Priest, Algorithms for Arbitrary Precision Floating Point Arithmetic, ARITH 1991).

All numbers are cut into pieces, each of few enough bits that the sum of all pieces of the same place is exact in
float64: then one product of matrices adds them, in any order (Ozaki, Ogita, Oishi and Rump, Numerical Algorithms 59,
2012). What is left are a few float64 numbers for each element. Sums with their rounding errors make components of them.
All takes 12 ns a number of an update; adding numbers to components one by one takes 40 to 110, and a mean 5.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedround_server.engine.double import LARGE, two_sum
from fedround_server.engine.format.dtypes import widen

ELEMENTS = 4 * 1024
"""Elements that are processed at a time."""
ROWS = 64
"""Vectors that are processed at a time: their numbers and the pieces of these fit the cache."""
BITS = 53
"""Of a float64 number."""
MIN_PIECE, MAX_PIECE = 20, 45
"""Bits of the pieces of a number: more coefficients leave fewer, and with fewer than these, they are cut up, too."""
LOWEST = -1074
"""The exponent of the smallest float64 number: all others are multiples of it."""


class TooManyComponents(ValueError):
    """An element needs more components than there are to be."""


class SumTooLarge(ValueError):
    """A number is so large that float64 may not hold the sum; the argument is the index of the element."""


def exact_sums(vectors: Sequence[Tensor], coefficients: Sequence[int], components: int) -> Tensor:
    """Adds multiples of vectors, exactly.

    The components of an exact zero are negative if all summands are negative zeros, and positive otherwise: `combine`
    makes the same of them as of the summands.

    Args:
        vectors: At least one; each of shape (elements,), in a floating dtype, finite.
        coefficients: One for each vector, >= 1, at most 2^53 together.
        components: How many numbers each sum may need.

    Returns:
        Shape (components, elements), float64.

    Raises:
        TooManyComponents: A sum needs more.
        SumTooLarge: A number is 2^960 or larger.
    """
    cut = _Coefficients(coefficients)
    result = torch.empty(components, len(vectors[0]), dtype=torch.float64)
    for start in range(0, len(vectors[0]), ELEMENTS):
        some = [vector[start : start + ELEMENTS] for vector in vectors]
        try:
            terms = _pieces_added(some, cut)
        except SumTooLarge as error:
            raise SumTooLarge(start + error.args[0]) from None
        found = _components(terms, components)
        zeros = (found[0] == 0).nonzero().flatten()
        if len(zeros):
            found[:, zeros] = _zeros(some, zeros)
        result[:, start : start + ELEMENTS] = found
    return result


class _Coefficients:
    """Coefficients, cut into digits of which few bits are set.

    Attributes:
        piece: How many bits the pieces of other numbers may have, so that sums of products with a digit are exact.
        digits: The digits of all coefficients, float64, by the exponent of their unit.
    """

    def __init__(self, coefficients: Sequence[int]) -> None:
        length = BITS - MIN_PIECE
        if sum(coefficients).bit_length() > length:
            length -= len(coefficients).bit_length()
        mask = (1 << length) - 1
        places = range(0, max(coefficients).bit_length(), length)
        digits = {place: [(one >> place) & mask for one in coefficients] for place in places}
        largest = max(map(sum, digits.values()))
        self.piece = min(BITS - largest.bit_length(), MAX_PIECE)
        self.digits = {place: torch.tensor(some, dtype=torch.float64) for place, some in digits.items()}


def _pieces_added(vectors: Sequence[Tensor], cut: _Coefficients) -> list[Tensor]:
    """Returns numbers whose exact sums are those of the vectors' multiples, the largest unit first."""
    sums: dict[tuple[int, int], Tensor] = {}
    # Used again for all vectors: the system clears memory that is new.
    memory = torch.empty(2, min(ROWS, len(vectors)), len(vectors[0]), dtype=torch.float64)
    for start in range(0, len(vectors), ROWS):
        some = vectors[start : start + ROWS]
        rest, pieces = memory[:, : len(some)]
        for row, vector in zip(rest, some, strict=True):
            row.copy_(widen(vector))
        while (largest := _largest(rest)) > 0:
            if largest >= LARGE:
                raise SumTooLarge(int(rest.abs().amax(0).argmax()))
            # On a grid, so that the pieces of all vectors with the same unit have the same number of bits at most.
            unit = max(-(-(math.frexp(largest)[1] - cut.piece) // cut.piece) * cut.piece, LOWEST)
            # Adding a number with this last place rounds to a multiple of the unit.
            rounder = math.ldexp(1.5, unit + BITS - 1)
            torch.add(rest, rounder, out=pieces).sub_(rounder)
            rest.sub_(pieces)
            for place, digits in cut.digits.items():
                added = torch.mv(pieces.T, digits[start : start + ROWS])
                sums[unit, place] = sums[unit, place].add_(added) if (unit, place) in sums else added
    ordered = sorted(sums, key=lambda one: one[0] + one[1], reverse=True)
    return [sums[one].mul_(2.0 ** one[1]) for one in ordered] or [torch.zeros(len(vectors[0]), dtype=torch.float64)]


def _largest(numbers: Tensor) -> float:
    """Returns the largest magnitude."""
    # In half the time that the magnitudes take.
    low, high = torch.aminmax(numbers)
    return max(-float(low), float(high))


def _components(terms: list[Tensor], count: int) -> Tensor:
    """Returns the components of sums of numbers: shape (count, elements)."""
    is_stable = False
    while not is_stable:
        is_stable = True
        # From the small ones to the large ones: what a sum cannot hold stays behind as its rounding error.
        for index in range(len(terms) - 1, 0, -1):
            high, low = two_sum(terms[index - 1], terms[index])
            is_stable = is_stable and torch.equal(low, terms[index])
            terms[index - 1], terms[index] = high, low
    if any(term.any() for term in terms[count:]):
        raise TooManyComponents
    found = torch.zeros(count, len(terms[0]), dtype=torch.float64)
    for row, term in zip(found, terms, strict=False):
        # A negative zero would change the sign of a sum that is zero.
        torch.add(term, 0.0, out=row)
    return found


def _zeros(vectors: Sequence[Tensor], places: Tensor) -> Tensor:
    """Returns the zeros of sums that are zero, at some places."""
    is_negative = torch.ones(len(places), dtype=torch.bool)
    for vector in vectors:
        numbers = widen(vector)[places]
        is_negative.logical_and_((numbers == 0).logical_and_(torch.signbit(numbers)))
    return torch.where(is_negative, -0.0, 0.0).double()
