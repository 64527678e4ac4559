"""Values that need a rule of their own: integers that are averaged, NaN and Inf that a model has, and float8."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aggregations import FED_AVG
from fedround_server.domain.model import Dtype
from fedround_server.domain.training import IntegerTensors
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format import tensors as engine_tensors
from fedround_server.engine.format.dtypes import narrow
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.integers import rounded_mean, take_maximum
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from unit.checks import check_numbers
from unit.paths import Paths, at
from unit.safetensors_files import NUMPY_DTYPES, write

INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
EIGHTS = (torch.float8_e4m3fn, torch.float8_e5m2)
HALVES = (torch.float16, torch.bfloat16)

weights = st.integers(1, 2**31)


def make(folder: Path, model: bytes, updates: list[bytes], weights: list[int], **options: Any) -> bytes:
    """Aggregates the updates, all of them files; returns the new file."""
    paths = [folder / str(number) for number in range(len(updates) + 1)]
    for path, content in zip(paths, [model, *updates], strict=True):
        path.write_bytes(content)
    target = folder / "new"
    target.unlink(missing_ok=True)
    first, *others = map(at, paths)
    job = AggregationJob(first, tuple(others), tuple(weights), FED_AVG, **options)
    aggregate(Paths(folder), job, target)
    return target.read_bytes()


@st.composite
def integer_votes(draw: st.DrawFn) -> tuple[str, list[int], list[int]]:
    dtype = draw(st.sampled_from(INTEGERS))
    bounds = np.iinfo(NUMPY_DTYPES[dtype])
    size = draw(st.integers(1, 6))
    values = st.integers(int(bounds.min), int(bounds.max)) | st.integers(0, 100)
    return (
        dtype,
        draw(st.lists(values, min_size=size, max_size=size)),
        draw(st.lists(weights, min_size=size, max_size=size)),
    )


@given(integer_votes())
@example(("I8", [1, 2], [1, 1]))
@example(("I8", [-1, -2], [1, 1]))
@example(("I64", [-(2**63), 2**63 - 1], [1, 2**31]))
@example(("U64", [2**64 - 1, 2**64 - 1], [3, 1]))
@example(("U64", [2**64 - 1, 0], [2**31, 1]))
def test_the_mean_of_integers_is_rounded_to_nearest_halves_up(votes: tuple[str, list[int], list[int]]) -> None:
    dtype, values, counts = votes
    updates = [torch.from_numpy(np.array([value], NUMPY_DTYPES[dtype])) for value in values]
    found = rounded_mean(updates, counts)
    assert found.dtype == updates[0].dtype
    mean = sum(Fraction(value) * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    exact, result = math.floor(mean + Fraction(1, 2)), int(found.numpy()[0])
    assert min(values) <= result <= max(values)
    # Sums of float64, whose numbers are distances of the values from the smallest one.
    error = (len(values) + 3) * Fraction(2) ** -52 * (max(values) - min(values))
    near_half = abs(mean + Fraction(1, 2) - round(mean + Fraction(1, 2))) <= error
    assert result == exact or near_half or abs(result - mean) <= error + Fraction(1, 2)


@given(st.sampled_from(INTEGERS), st.data())
def test_equal_integers_stay_as_they_are(dtype: str, data: st.DataObject) -> None:
    tensor = torch.from_numpy(data.draw(arrays(NUMPY_DTYPES[dtype], 5)))
    counts = data.draw(st.lists(weights, min_size=1, max_size=4))
    updates = [tensor] * len(counts)
    assert rounded_mean(updates, counts).tolist() == take_maximum(updates).tolist() == tensor.tolist()


def test_the_mean_of_booleans_is_the_weighted_majority() -> None:
    updates = [torch.tensor(row) for row in ([True, True, False], [False, True, False], [False, False, True])]
    assert rounded_mean(updates, [2, 1, 1]).tolist() == [True, True, False]
    assert rounded_mean(updates, [1, 1, 1]).tolist() == [False, True, False]


def test_integers_are_averaged_if_the_training_says_so(tmp_path: Path) -> None:
    counter = "bn.num_batches_tracked"
    tensors = [
        {"n": np.array([one, -one]), "m": np.array([one > 2], bool), counter: np.array(one)} for one in (1, 2, 5)
    ]
    files = [write(tensor) for tensor in tensors]
    taken = safetensors.numpy.load(make(tmp_path, files[0], files[1:], [1, 2]))
    averaged = safetensors.numpy.load(make(tmp_path, files[0], files[1:], [1, 2], integers=IntegerTensors.MEAN))
    assert [taken["n"].tolist(), taken["m"].tolist(), taken[counter].item()] == [[5, -5], [True], 5]
    assert [averaged["n"].tolist(), averaged["m"].tolist(), averaged[counter].item()] == [[4, -4], [True], 5]


@pytest.mark.parametrize("dtype", ["U64", "U32", "U16", "I64"])
def test_counters_of_every_width_get_their_maximum(tmp_path: Path, dtype: str) -> None:
    files = [write({"num_batches_tracked": np.array([one], NUMPY_DTYPES[dtype])}) for one in (0, 9, 7)]
    assert safetensors.numpy.load(make(tmp_path, files[0], files[1:], [1, 2]))["num_batches_tracked"].tolist() == [9]


@pytest.mark.parametrize("dtype", EIGHTS)
def test_float8_is_rounded_once_to_the_nearest(dtype: torch.dtype) -> None:
    held = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    held = torch.unique(held[torch.isfinite(held)])
    middle = (held[1:] + held[:-1]) / 2
    tiny = 2.0**-40
    for values, expected in (
        (held, held),
        (middle - tiny * middle.abs(), torch.where(middle < 0, held[:-1], held[:-1])),
        (middle + tiny * middle.abs(), torch.where(middle < 0, held[1:], held[1:])),
    ):
        assert narrow(values, dtype).double().tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", EIGHTS)
def test_float8_is_averaged(tmp_path: Path, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    tensors = [torch.randn(1000, generator=rng).to(dtype) for _ in range(4)]
    files = [safetensors.torch.save({"w": tensor, "b": torch.ones(3)}) for tensor in tensors]
    [model, *updates] = files
    result = safetensors.torch.load(make(tmp_path, model, updates, [3, 1, 4]))["w"]
    total = sum(tensor.double() * weight for tensor, weight in zip(tensors[1:], [3, 1, 4], strict=True))
    assert result.dtype == dtype
    assert result.float().tolist() == narrow(total / 8, dtype).float().tolist()
    same = safetensors.torch.load(make(tmp_path, model, [updates[0]] * 3, [3, 1, 4]))["w"]
    assert same.float().tolist() == tensors[1].float().tolist()


@pytest.mark.parametrize("dtype", EIGHTS)
def test_float8_is_checked(tmp_path: Path, dtype: torch.dtype) -> None:
    paths = tmp_path / "update", tmp_path / "origin"
    for path, values in zip(paths, ([1.0, 2.0], [1.0, 5.0]), strict=True):
        safetensors.torch.save_file({"w": torch.tensor(values).to(dtype)}, path)
    assert check_numbers(*paths).norm == 3.0
    safetensors.torch.save_file({"w": torch.tensor([1.0, math.nan]).to(dtype)}, paths[0])
    assert check_numbers(paths[0]).not_finite == check_numbers(*paths).not_finite == "w"


def test_complex_numbers_are_read_as_pairs(tmp_path: Path) -> None:
    tensor = torch.complex(torch.randn(2, 3), torch.randn(2, 3))
    path = tmp_path / "file"
    safetensors.torch.save_file({"none": torch.zeros(0, 2, dtype=torch.complex64), "w": tensor}, path)
    with TensorFile(path) as file:
        assert torch.equal(file.tensor("w"), tensor)
        assert file.tensor("none").shape == (0, 2)
        assert file.layout.manifest["w"].dtype is Dtype.C64
    assert check_numbers(path).not_finite is None
    tensor[1, 2] = complex(0.0, math.inf)
    safetensors.torch.save_file({"v": torch.zeros(1, dtype=torch.complex64), "w": tensor}, path)
    assert check_numbers(path).not_finite == "w"


def test_the_distance_of_complex_numbers_counts_both_parts(tmp_path: Path) -> None:
    paths = tmp_path / "update", tmp_path / "origin"
    for path, value in zip(paths, (3 + 4j, 0), strict=True):
        path.write_bytes(write({"w": np.array([value], np.complex64)}))
    assert check_numbers(*paths).norm == 5.0


def test_tensors_without_elements_are_kept(tmp_path: Path) -> None:
    model = {"a": np.zeros((0, 3), np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(0), "d": np.zeros(0, int)}
    updates = [model | {"b": np.array([value, 1], np.float32)} for value in (1, 3)]
    result = safetensors.numpy.load(make(tmp_path, write(model), [write(update) for update in updates], [1, 1]))
    assert {name: tensor.shape for name, tensor in result.items()} == {name: one.shape for name, one in model.items()}
    assert result["b"].tolist() == [2, 1]
    empty = write({"a": np.zeros((0, 3), np.float32)})
    assert safetensors.numpy.load(make(tmp_path, empty, [empty], [1]))["a"].shape == (0, 3)


mask_values = st.sampled_from([0.0, -1.5, math.inf, -math.inf, math.nan])


@st.composite
def masked(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """A model with NaN and Inf, updates with the same in these places, and their weights."""
    dtype = NUMPY_DTYPES[draw(st.sampled_from(["F64", "F32", "F16"]))]
    size = draw(st.integers(1, 12))
    model = draw(arrays(dtype, size, elements=mask_values))
    numbers = arrays(dtype, size, elements=st.floats(-100, 100, width=16))
    updates = draw(st.lists(numbers, min_size=1, max_size=4))
    for update in updates:
        np.copyto(update, model, where=~np.isfinite(model))
    return model, updates, draw(st.lists(weights, min_size=len(updates), max_size=len(updates)))


@given(a_round=masked(), block=st.sampled_from([1, 5, 1000]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nan_and_inf_of_the_model_are_accepted_and_kept(
    tmp_path: Path, a_round: tuple[np.ndarray, list[np.ndarray], list[int]], block: int
) -> None:
    model, updates, counts = a_round
    fixed = ~np.isfinite(model)
    files = [write({"mask": tensor, "w": np.ones(3, model.dtype)}) for tensor in (model, *updates)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_tensors, "BLOCK", block)
        made = make(tmp_path, files[0], files[1:], counts, keep_non_finite=True)
        result = safetensors.numpy.load(made)["mask"]
        assert result[fixed].tobytes() == model[fixed].tobytes()
        finite = [write({"mask": np.where(fixed, 0, tensor)}) for tensor in (model, *updates)]
        expected = safetensors.numpy.load(make(tmp_path, finite[0], finite[1:], counts))["mask"]
        assert result[~fixed].tobytes() == expected[~fixed].tobytes()
        (tmp_path / "model").write_bytes(files[0])
        (tmp_path / "update").write_bytes(files[1])
        paths = tmp_path / "update", tmp_path / "model"
        found = check_numbers(*paths, model=paths[1])
        assert found.not_finite is None
        difference = np.where(fixed, 0, updates[0]).astype(np.float64) - np.where(fixed, 0, model)
        assert found.norm == pytest.approx(float(np.linalg.norm(difference)), rel=1e-12)
        assert check_numbers(paths[0], model=paths[1]).not_finite is None
        assert check_numbers(paths[0]).not_finite == ("mask" if fixed.any() else None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_nan_and_inf_elsewhere_are_found(tmp_path: Path, value: float, place: int) -> None:
    model = np.array([1.0, math.inf, -math.inf, math.nan], np.float32)
    update = model.copy()
    update[place] = value
    is_same = bool(update[place] == model[place] or (np.isnan(value) and np.isnan(model[place])))
    paths = tmp_path / "update", tmp_path / "model"
    for path, tensor in zip(paths, (update, model), strict=True):
        path.write_bytes(write({"mask": tensor}))
    for origin in (None, paths[1]):
        assert check_numbers(paths[0], origin, model=paths[1]).not_finite == (None if is_same else "mask")
    if not is_same and place == 0:
        with pytest.raises(AggregationFailed, match="'mask' has values"):
            make(tmp_path, paths[1].read_bytes(), [paths[0].read_bytes()], [1], keep_non_finite=True)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float8_e5m2])
def test_inf_is_kept_in_narrow_types(tmp_path: Path, dtype: torch.dtype) -> None:
    model = torch.tensor([1.0, -math.inf, 2.0]).to(dtype)
    update = torch.tensor([2.0, -math.inf, 4.0]).to(dtype)
    files = [safetensors.torch.save({"mask": tensor}) for tensor in (model, update)]
    result = safetensors.torch.load(make(tmp_path, files[0], files[1:], [1], keep_non_finite=True))["mask"]
    assert result.float().tolist() == [2.0, -math.inf, 4.0]
    paths = [tmp_path / "0", tmp_path / "1"]
    assert check_numbers(paths[1], model=paths[0]).not_finite is None
