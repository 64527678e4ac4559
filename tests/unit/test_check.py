"""What is measured of an update's numbers before it is accepted, against numpy in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedround_server.engine.format import tensors as engine_tensors
from unit.checks import check_numbers
from unit.safetensors_files import NUMPY_DTYPES, write

Tensors = dict[str, np.ndarray]
FLOATS = ("F64", "F32", "F16")


def files(folder: Path, update: Tensors, origin: Tensors) -> tuple[Path, Path]:
    paths = folder / "update", folder / "origin"
    for path, tensors in zip(paths, (update, origin), strict=True):
        path.write_bytes(write(tensors))
    return paths


def distance(update: Tensors, origin: Tensors) -> float:
    """The L2 norm of the difference, rounded once."""
    squares: list[float] = []
    for name, tensor in update.items():
        if tensor.dtype.kind == "f":
            difference = tensor.astype(np.float64) - origin[name].astype(np.float64)
            squares += (difference**2).ravel().tolist()
    return math.sqrt(math.fsum(squares))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    update, origin = {}, {}
    for number in range(draw(st.integers(1, 4))):
        dtype = NUMPY_DTYPES[draw(st.sampled_from([*FLOATS, "I64", "U8"]))]
        shape = draw(array_shapes(min_dims=0, max_dims=2, max_side=7))
        values = st.floats(-1000, 1000, width=16) if dtype.kind == "f" else st.integers(0, 100)
        for tensors in (update, origin):
            tensors[f"t{number}"] = draw(arrays(dtype, shape, elements=values))
    return update, origin


@given(pair=pairs(), block=st.sampled_from([1, 3, 1000]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_norm_is_that_of_the_difference_over_all_floating_tensors(
    pair: tuple[Tensors, Tensors], block: int, tmp_path: Path
) -> None:
    update, origin = files(tmp_path, *pair)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_tensors, "BLOCK", block)
        found = check_numbers(update, origin)
    assert found.not_finite is None
    assert found.norm == pytest.approx(distance(*pair), rel=1e-12, abs=1e-300)
    assert check_numbers(update).norm == 0


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e160, 1e300])
def test_squares_that_no_float_holds_have_a_root_all_the_same(tmp_path: Path, scale: float) -> None:
    update, origin = files(tmp_path, {"w": np.array([3.0, 4.0]) * scale}, {"w": np.zeros(2)})
    assert check_numbers(update, origin).norm == pytest.approx(5 * scale, rel=1e-12)


def test_opposite_giants_are_farther_than_any_bound(tmp_path: Path) -> None:
    update, origin = files(tmp_path, {"w": np.array([1.7e308])}, {"w": np.array([-1.7e308])})
    assert check_numbers(update, origin).norm == math.inf


def test_of_moments_the_means_are_measured(tmp_path: Path) -> None:
    moments = {"mean/w": np.array([1.0, 3.0]), "second/w": np.full(2, 9e9), "deviation/0/w": np.full(2, 7, np.float32)}
    update, origin = files(tmp_path, moments, {"w": np.array([1, 1], np.float32), "steps": np.array(3)})
    assert check_numbers(update, origin, "mean/").norm == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("others", [0.0, 1.0, 1000.0])
def test_a_number_that_is_none_is_found_while_it_is_measured(
    tmp_path: Path, bad: float, dtype: str, others: float
) -> None:
    spoilt = np.full(9, others, NUMPY_DTYPES[dtype])
    spoilt[7] = bad
    update, origin = files(tmp_path, {"v": spoilt}, {"v": np.zeros(9, NUMPY_DTYPES[dtype])})
    assert check_numbers(update, origin).not_finite == "v"
