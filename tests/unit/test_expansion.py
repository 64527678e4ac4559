"""Exact sums: the components of each element add up to what rational arithmetic says, and do not overlap."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedround_server.domain.partial_sum import COMPONENTS
from fedround_server.engine.exact import Combination, combine
from fedround_server.engine.expansion import ROWS, SumTooLarge, TooManyComponents, exact_sums
from sizes import SEED
from unit.hard_numbers import DRAWS

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
MOST = COMPONENTS[-1]


def exact(vectors: list[Tensor], coefficients: list[int]) -> list[Fraction]:
    columns = zip(*(vector.double().tolist() for vector in vectors), strict=True)
    return [
        sum((Fraction(one) * count for one, count in zip(column, coefficients, strict=True)), Fraction())
        for column in columns
    ]


def check(vectors: list[Tensor], coefficients: list[int], components: int = MOST) -> Tensor:
    found = exact_sums(vectors, coefficients, components)
    assert found.shape == (components, len(vectors[0]))
    assert [sum(map(Fraction, column)) for column in found.T.tolist()] == exact(vectors, coefficients)
    # The sum of two neighbors is the first of them: no digit is in both.
    assert torch.equal(found[:-1] + found[1:], found[:-1])
    return found


def moderate(vectors: list[Tensor]) -> list[Tensor]:
    """Numbers of which eight components hold the sum."""
    return [
        torch.where(one.abs() < 1e40, one, 1.0) * (one.abs() > 1e-40) if one.dtype == torch.float64 else one
        for one in vectors
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_the_components_add_up_to_the_sum(dtype: torch.dtype, draw: object) -> None:
    rng = np.random.default_rng(SEED)
    of = torch.float16 if dtype.itemsize == 1 else dtype
    for count in (1, 2, 7, ROWS + 3):
        rows = [torch.tensor(row).to(of) for row in draw(rng, of, (count, 40))]  # type: ignore[operator]
        vectors = moderate([row.clamp(-400, 400).to(dtype) if dtype.itemsize == 1 else row for row in rows])
        check(vectors, [int(one) for one in rng.integers(1, 2**31, count)])
        check(vectors, [1] * count)


finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-(2.0**900), max_value=2.0**900)


@given(st.lists(st.tuples(finite, st.integers(1, 2**50)), min_size=1, max_size=7))
def test_sums_of_any_numbers_are_exact_or_refused(pairs: list[tuple[float, int]]) -> None:
    vectors, coefficients = [torch.tensor([one], dtype=torch.float64) for one, _ in pairs], [one for _, one in pairs]
    try:
        check(vectors, coefficients)
    except TooManyComponents:
        # So many digits lie between the first and the last one.
        sizes = [abs(Fraction(one) * count) for one, count in pairs if one]
        assert max(sizes) / min(sizes) > 2 ** (53 * (MOST - 3))


@given(
    st.lists(st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 2**50)), min_size=1)
)
def test_no_sum_of_float32_numbers_is_refused(pairs: list[tuple[float, int]]) -> None:
    check([torch.tensor([one]) for one, _ in pairs], [one for _, one in pairs])


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_the_mean_of_components_has_the_bits_of_the_mean(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(SEED)
    for draw in DRAWS:
        vectors = moderate([torch.tensor(row).to(dtype) for row in draw(rng, dtype, (9, 400))])
        weights = [int(one) for one in rng.integers(1, 2**31, len(vectors))]
        flat = combine(vectors, Combination(weights, sum(weights)), dtype)
        parts = [exact_sums(vectors[at : at + 3], weights[at : at + 3], MOST) for at in (0, 3)]
        nested = [*parts[0], *parts[1], *vectors[6:]]
        combination = Combination([1] * 2 * MOST + weights[6:], sum(weights))
        found = combine(nested, combination, dtype)
        assert torch.equal(found, flat)
        assert torch.equal(torch.signbit(found), torch.signbit(flat))


def test_zeros_keep_the_sign_that_their_sum_has() -> None:
    columns = [(-0.0, -0.0), (-0.0, 0.0), (1.0, -1.0), (0.0, 0.0), (-1e-300, 0.0)]
    vectors = [torch.tensor(row, dtype=torch.float64) for row in zip(*columns, strict=True)]
    found = exact_sums(vectors, [1, 1], 2)
    assert torch.signbit(found).tolist() == [[True, False, False, False, True], [True, False, False, False, False]]


def test_what_does_not_fit_is_refused() -> None:
    scattered = [torch.tensor([2.0**exponent], dtype=torch.float64) for exponent in range(-900, 900, 100)]
    with pytest.raises(TooManyComponents):
        exact_sums(scattered, [1] * len(scattered), MOST)
    check(scattered[:MOST], [1] * MOST)
    with pytest.raises(TooManyComponents):
        exact_sums(scattered[:3], [1] * 3, 2)
    with pytest.raises(SumTooLarge) as refused:
        exact_sums([torch.tensor([1.0, 2.0**960], dtype=torch.float64)], [1], 2)
    assert refused.value.args == (1,)
