"""Rounding to half precision: once, like exact arithmetic says."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedround_server.engine.format.dtypes import narrow

# Bits of the significand, and exponents of the smallest normal and of the largest numbers.
FORMATS = {torch.float16: (11, -14, 15), torch.bfloat16: (8, -126, 127)}


def exact(value: float, dtype: torch.dtype) -> float:
    """Rounds one number in integers."""
    precision, least, most = FORMATS[dtype]
    if not math.isfinite(value) or value == 0:
        return value
    exponent = max(math.frexp(value)[1] - 1, least)
    quantum = Fraction(2) ** (exponent - precision + 1)
    # round() takes a fraction to the nearest integer, ties to even.
    rounded = abs(round(Fraction(value) / quantum)) * quantum
    return math.copysign(math.inf if rounded >= Fraction(2) ** (most + 1) else float(rounded), value)


@st.composite
def near_ties(draw: st.DrawFn, dtype: torch.dtype) -> float:
    """Numbers half way between two neighbours, and their own neighbours in float64."""
    precision, least, most = FORMATS[dtype]
    significand = 2 * draw(st.integers(0, 2**precision - 1)) + 1
    tie = math.ldexp(significand, draw(st.integers(least - precision, most - precision + 1)))
    away = draw(st.sampled_from([-math.inf, math.inf, tie]))
    return math.nextafter(tie, away) * draw(st.sampled_from([1, -1]))


@pytest.mark.parametrize("dtype", list(FORMATS))
@given(data=st.data())
@settings(deadline=None)
def test_rounding_is_that_of_exact_arithmetic(dtype: torch.dtype, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(allow_nan=False) | near_ties(dtype), min_size=1, max_size=50))
    found = narrow(torch.tensor(values, dtype=torch.float64), dtype)
    assert found.dtype == dtype
    expected = [exact(value, dtype) for value in values]
    assert found.tolist() == expected
    assert [math.copysign(1, value) for value in found.tolist()] == [math.copysign(1, value) for value in expected]


@given(st.lists(st.floats() | near_ties(torch.float16), min_size=1, max_size=100))
@example([1 + 2**-11 + 2**-40])
@settings(deadline=None)
def test_float16_is_numpys_which_rounds_once(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(values).astype(np.float16)
    np.testing.assert_array_equal(narrow(torch.tensor(values, dtype=torch.float64), torch.float16).numpy(), expected)


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_what_is_representable_stays(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    back = narrow(every.to(torch.float64), dtype)
    kept = ~every.isnan()
    assert back[kept].view(torch.int16).equal(every[kept].view(torch.int16))
    assert back[~kept].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_rounded_once_anyway(dtype: torch.dtype) -> None:
    values = torch.tensor([0.1, -(1 + 2**-24 + 2**-50)], dtype=torch.float64)
    assert narrow(values, dtype).tolist() == values.numpy().astype(str(dtype).removeprefix("torch.")).tolist()
