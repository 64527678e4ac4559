"""Partial sums that pass the check can be added to any others, and those that relays make pass it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedround_server.domain.model import Dtype
from fedround_server.domain.partial_sum import COMPONENTS
from fedround_server.engine.check_sums import check_sums
from fedround_server.engine.expansion import exact_sums
from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.jobs import SumCheck

MOST = COMPONENTS[-1]
NARROW = (Dtype.F32, Dtype.C64, Dtype.F16, Dtype.BF16, Dtype.F8_E4M3, Dtype.F8_E5M2)
Find = Callable[[list[list[float]], Dtype, int], "str | None"]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """Returns what is wrong with a sum."""
    path: Path = tmp_path_factory.mktemp("sums") / "sum"

    def found(elements: list[list[float]], dtype: Dtype, num_examples: int) -> str | None:
        save_file({"w": torch.tensor(elements, dtype=torch.float64)}, path)
        return check_sums(path, SumCheck({"w": dtype}, num_examples)).problem

    return found


components = st.lists(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.builds(lambda sign, power: sign * 2.0**power, st.sampled_from((1.0, -1.0)), st.integers(-160, 190)),
    ),
    min_size=MOST,
    max_size=MOST,
)


@given(st.data())
def test_sums_that_pass_can_be_added(find: Find, data: Any) -> None:
    dtype = data.draw(st.sampled_from(NARROW))
    sums = data.draw(st.lists(st.tuples(components, st.integers(1, 2**50)), min_size=1, max_size=5))
    passed = [one for one, examples in sums if find([one], dtype, examples) is None]
    vectors = [torch.tensor([number], dtype=torch.float64) for one in passed for number in one]
    if vectors:
        exact_sums(vectors, [1] * len(vectors), MOST)


@given(st.data())
def test_sums_of_updates_pass(find: Find, data: Any) -> None:
    dtype = data.draw(st.sampled_from(NARROW))
    of = TORCH_DTYPES[dtype]
    limits = torch.finfo(of)
    numbers = st.floats(width=32, min_value=max(limits.min, -(2.0**127)), max_value=min(limits.max, 2.0**127))
    pairs = data.draw(st.lists(st.tuples(numbers, st.integers(1, 2**50)), min_size=1, max_size=7))
    vectors = [torch.tensor([number]).to(of) for number, _ in pairs]
    found = exact_sums(vectors, [examples for _, examples in pairs], MOST)
    assert find(found.T.tolist(), dtype, sum(examples for _, examples in pairs)) is None


@pytest.mark.parametrize(
    ("element", "dtype", "words"),
    [
        ([2.0**-150, 0.0], Dtype.F32, "no multiples of 2"),
        ([2.0**130, 0.0], Dtype.F32, "times the largest number of F32"),
        ([7e4 * 2, 0.0], Dtype.F16, "times the largest number of F16"),
        ([2.0**960, 1.0], Dtype.F64, "cannot be added"),
    ],
)
def test_what_is_no_sum(find: Find, element: list[float], dtype: Dtype, words: str) -> None:
    problem = find([[0.0, 0.0], element], dtype, 2)
    assert problem is not None
    assert problem.startswith("tensor 'w' has ")
    assert words in problem
