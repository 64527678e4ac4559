"""Means of many adversarial elements in every dtype: no difference to exact arithmetic."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedround_server.engine.exact import Combination, combine
from sizes import SEED, size
from unit.exactly import FORMATS
from unit.hard_numbers import DRAWS

ELEMENTS = size("ELEMENTS", 6000)
CHUNK = 20_000
GRID = 1074
"""All float64 numbers are multiples of 2^-GRID."""
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}

pytestmark = [pytest.mark.attack, pytest.mark.timeout(300 + ELEMENTS // 500)]


def on_grid(numbers: Tensor) -> np.ndarray:
    """Numbers as multiples of 2^-GRID: Python integers."""
    fractions, exponents = np.frexp(numbers.double().numpy())
    shifts = exponents.astype(object) - 53 + GRID
    wholes = (fractions * 2.0**53).astype(np.int64).astype(object)
    # Below the grid, only zeros are cut off.
    return np.where(shifts >= 0, wholes << np.maximum(shifts, 0), wholes >> np.maximum(-shifts, 0))


def neighbors(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the dtype before and after each one; beyond the largest, the next power of two."""
    kind = INTEGERS[numbers.dtype.itemsize]
    places = numbers.contiguous().view(kind)
    lowest = torch.iinfo(kind).min
    # In the order of the numbers, and 0 for both zeros.
    order = torch.where(places >= 0, places, lowest - places)

    def at(order: Tensor) -> Tensor:
        return torch.where(order >= 0, order, lowest - order).to(kind).view(numbers.dtype)

    return at(order - 1), at(order + 1)


def wrong(result: Tensor, vectors: list[Tensor], weights: list[int], divisor: int) -> int:
    """How many results are not the numbers nearest to the exact means, ties to even."""
    exact = sum(on_grid(vector) * weight for vector, weight in zip(vectors, weights, strict=True))
    found = on_grid(result)
    before, after = neighbors(result)
    largest = FORMATS[result.dtype][2]
    beyond = 1 << (largest + 1 + GRID)
    low = np.where(torch.isfinite(before).numpy(), on_grid(torch.nan_to_num(before)), -beyond)
    high = np.where(torch.isfinite(after).numpy(), on_grid(torch.nan_to_num(after)), beyond)
    is_even = (result.contiguous().view(INTEGERS[result.dtype.itemsize]) & 1).numpy() == 0
    twice = 2 * exact
    lower, upper = (low + found) * divisor, (found + high) * divisor
    is_near = np.where(is_even, (lower <= twice) & (twice <= upper), (lower < twice) & (twice < upper))
    # A zero is negative if all summands are, or if it stands for a small negative number.
    signs = torch.stack([torch.signbit(vector) & (vector == 0) for vector in vectors]).all(0).numpy()
    is_negative = np.where(exact == 0, signs, exact < 0)
    is_signed = torch.signbit(result).numpy() == is_negative
    return int((~(is_near.astype(bool) & is_signed.astype(bool))).sum())


@pytest.mark.parametrize("dtype", sorted(FORMATS, key=str), ids=str)
def test_no_mean_differs_from_the_exact_one(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(SEED)
    failures, elements = 0, 0
    while elements < ELEMENTS:
        for draw in DRAWS:
            columns = min(CHUNK, -(-ELEMENTS // len(DRAWS)))
            count = int(rng.integers(2, 9))
            weights = [int(one) for one in rng.integers(1, 2**31, count)] if rng.random() < 0.5 else [1] * count
            vectors = [torch.tensor(row).to(dtype) for row in draw(rng, dtype, (count, columns))]
            result = combine(vectors, Combination(weights, sum(weights)), dtype)
            failures += wrong(result, vectors, weights, sum(weights))
            elements += columns
    print(f"{dtype}: {failures} of {elements} means differ from the exact ones")  # noqa: T201 - for `make chaos`
    assert failures == 0


def test_a_mean_in_float64_is_found_wrong() -> None:
    # The numbers that a sum in float64 gets wrong, and a zero with the wrong sign.
    vectors = [torch.tensor([1e30, -0.0, 3.0]), torch.tensor([1.0, -0.0, 5.0]), torch.tensor([-1e30, -0.0, 1.0])]
    assert wrong(torch.tensor([0.0, -0.0, 3.0]), vectors, [1, 1, 1], 3) == 1
    assert wrong(torch.tensor([1 / 3, 0.0, 3.0]), vectors, [1, 1, 1], 3) == 1
    assert wrong(torch.tensor([1 / 3, -0.0, 3.0000002]), vectors, [1, 1, 1], 3) == 1
    assert wrong(torch.tensor([1 / 3, -0.0, 3.0]), vectors, [1, 1, 1], 3) == 0
