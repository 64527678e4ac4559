"""Linear combinations are correctly rounded, whatever the numbers are."""

import itertools
import math
import struct
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedround_server.engine import exact
from fedround_server.engine.exact import Combination, combine
from unit.exactly import FORMATS, combination
from unit.hard_numbers import DRAWS, Draw, near, of_all_sizes

DTYPES = sorted(FORMATS, key=str)


def same(first: float, second: float) -> bool:
    return struct.pack("<d", first) == struct.pack("<d", second)


def columns(vectors: Sequence[Tensor]) -> list[list[float]]:
    return [list(column) for column in zip(*(vector.double().tolist() for vector in vectors), strict=True)]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combinations_are_correctly_rounded(dtype: torch.dtype, draw: Draw) -> None:
    rng = np.random.default_rng(7)
    for count, kind in itertools.product((1, 2, 3, 4, 9), ("equal", "integers", "numbers")):
        coefficients = {
            "equal": [1] * count,
            "integers": [int(one) for one in rng.integers(1, 2**31, count)],
            "numbers": [float(one) for one in rng.standard_normal(count)],
        }[kind]
        divisor = float(np.abs(rng.standard_normal())) if kind == "numbers" else sum(coefficients)
        vectors = [torch.tensor(row).to(dtype) for row in draw(rng, dtype, (count, 60))]
        result = combine(vectors, Combination(coefficients, divisor), dtype)
        assert result.dtype == dtype
        for column, found in zip(columns(vectors), result.double().tolist(), strict=True):
            expected = combination(column, coefficients, divisor, dtype)
            assert same(found, expected), (column, coefficients, divisor)


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 2**31)), min_size=1, max_size=12
    ),
    st.sampled_from(DTYPES),
)
def test_a_mean_of_any_float64_numbers_is_correctly_rounded(votes: list[tuple[float, int]], dtype: torch.dtype) -> None:
    weights = [weight for _, weight in votes]
    vectors = [torch.tensor([value], dtype=torch.float64) for value, _ in votes]
    found = combine(vectors, Combination(weights, sum(weights)), dtype).item()
    assert same(found, combination([value for value, _ in votes], weights, sum(weights), dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_the_mean_of_one_is_itself(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    wide = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[dtype.itemsize]
    every = bits.to(wide).mul(2 ** (8 * (dtype.itemsize - 2)) if dtype.itemsize > 2 else 1).view(dtype)
    every = every[torch.isfinite(every.to(torch.float64))]
    result = combine([every], Combination([3], 3), dtype)
    assert torch.equal(result.view(wide), every.view(wide))


@settings(max_examples=30)
@given(st.permutations(range(6)), st.integers(0, 2**32))
def test_the_order_does_not_matter(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = [torch.tensor(row).float() for row in of_all_sizes(rng, torch.float32, (6, 50))]
    weights = [int(one) for one in rng.integers(1, 1000, 6)]
    first = combine(vectors, Combination(weights, sum(weights)), torch.float32)
    moved = Combination([weights[index] for index in order], sum(weights))
    assert torch.equal(first, combine([vectors[index] for index in order], moved, torch.float32))


def test_blocks_have_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors = [torch.tensor(row).float() for row in near(rng, torch.float32, (4, 5000))]
    whole = combine(vectors, Combination([1, 1, 1, 1], 4), torch.float32)
    monkeypatch.setattr(exact, "BLOCK", 700)
    monkeypatch.setattr(exact, "COLUMNS", 400)
    assert torch.equal(whole, combine(vectors, Combination([1, 1, 1, 1], 4), torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_in_float64_are_not_written_to(dtype: torch.dtype) -> None:
    vectors = [torch.tensor([12.941803455352783, 1.0, -0.0, 1e-300], dtype=torch.float64) for _ in range(3)]
    result = combine(vectors, Combination([2, 2, 3], 7), dtype)
    assert torch.equal(result.double(), vectors[0].to(dtype).double())
    assert all(vector.tolist() == [12.941803455352783, 1.0, -0.0, 1e-300] for vector in vectors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", [[1] * 2, [1] * 8, [3, 5, 90], [2**31 - 1, 2**30 + 3, 7], [0.3, 0.45, 0.25]])
def test_many_ties_and_zeros_are_correctly_rounded(dtype: torch.dtype, weights: list[float]) -> None:
    rng = np.random.default_rng(11)
    values = near(rng, dtype, (len(weights), 1500))
    values[:, ::7] *= 2.0**-20
    values[:, ::50] = -0.0
    values[0, ::100] = 0.0
    vectors = [torch.tensor(row).to(dtype) for row in values]
    result = combine(vectors, Combination(weights, sum(weights)), dtype)
    for column, found in zip(columns(vectors), result.double().tolist(), strict=True):
        assert same(found, combination(column, weights, sum(weights), dtype)), column


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("divisor", [1e308, 7e200, 2.0**1023, 1e-30, -3.0, 3e-200, 1e-310, 5e-324])
def test_coefficients_and_divisors_have_any_size(dtype: torch.dtype, divisor: float) -> None:
    rng = np.random.default_rng(11)
    for coefficients in ([1.0, 2.0, 3.0], [1e300, 2e300, 1e299], [1e-300, 2e-300, 5e-324], [1e150, -1e150, 1.0]):
        vectors = [torch.tensor(row).to(dtype) for row in near(rng, dtype, (3, 20))]
        result = combine(vectors, Combination(coefficients, divisor), dtype).double().tolist()
        for column, found in zip(columns(vectors), result, strict=True):
            assert same(found, combination(column, coefficients, divisor, dtype)), (column, coefficients, divisor)


def test_no_element_is_a_vector_without_elements() -> None:
    assert combine([torch.empty(0)] * 2, Combination([1, 2], 3), torch.float32).shape == (0,)


def test_numbers_that_float64_does_not_hold_are_rejected() -> None:
    for coefficients, divisor in (([2**53 + 1], 1), ([1], 0), ([math.inf], 1), ([1], math.nan)):
        with pytest.raises(ValueError, match="must be float64"):
            Combination(coefficients, divisor)


def test_what_is_not_finite_stays_so() -> None:
    vectors = [torch.tensor([1.0, math.nan, math.inf, 3.0]), torch.tensor([2.0, 1.0, 1.0, 5.0])]
    result = combine(vectors, Combination([1, 1], 2), torch.float32).tolist()
    assert result[0] == 1.5
    assert result[3] == 4
    assert not math.isfinite(result[1])
    assert not math.isfinite(result[2])
