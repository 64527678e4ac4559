"""Aggregation: the bits of a reference, for any model, any weights, any order of arrival."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from aggregations import FED_AVG
from fedround_server.aggregators.fed_prox import FedProx
from fedround_server.domain.aggregation import Aggregation
from fedround_server.engine import source
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format.tensors import BLOCK
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from unit import exactly
from unit.checks import check_numbers
from unit.paths import Paths, at
from unit.safetensors_files import NUMPY_DTYPES, write

Tensors = dict[str, np.ndarray]
FLOATS = ("F64", "F32", "F16")


def make(
    folder: Path, model: Tensors, updates: list[Tensors], weights: list[int], aggregation: Aggregation = FED_AVG
) -> Path:
    """Aggregates, and returns the new file."""
    files = []
    for number, tensors in enumerate([model, *updates]):
        files.append(folder / f"{number}.safetensors")
        files[-1].write_bytes(write(tensors))
    target = folder / "new.safetensors"
    target.unlink(missing_ok=True)
    first, *others = map(at, files)
    blob = aggregate(Paths(folder), AggregationJob(first, tuple(others), tuple(weights), aggregation), target).made
    assert blob.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert blob.size_bytes == target.stat().st_size
    return target


def reference(updates: list[Tensors], weights: list[int], name: str) -> np.ndarray:
    """The weighted mean, rounded once."""
    return exactly.mean([update[name] for update in updates], weights)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    values = np.asarray(rng.standard_normal((2, *shape)) * 100)
    if dtype.kind == "c":
        return np.asarray(values[0] + 1j * values[1], dtype)
    return np.asarray(np.abs(values[0]) if dtype.kind == "u" else values[0]).astype(dtype)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Tensors, list[Tensors], list[int]]:
    shapes = draw(
        st.dictionaries(
            st.sampled_from(["a", "b/weight", "c.bias", "zz"]),
            st.tuples(
                st.sampled_from(sorted(NUMPY_DTYPES)), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
            ),
            min_size=1,
        )
    )
    count = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = []
    for _ in range(count + 1):
        made.append({name: _draw(rng, shape, NUMPY_DTYPES[dtype]) for name, (dtype, shape) in shapes.items()})
    return made[0], made[1:], draw(st.lists(st.integers(1, 2**31), min_size=count, max_size=count))


@given(rounds())
def test_the_result_is_the_references_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, a_round: tuple[Tensors, list[Tensors], list[int]]
) -> None:
    model, updates, weights = a_round
    result = safetensors.numpy.load_file(make(tmp_path_factory.mktemp("round"), model, updates, weights))
    assert result.keys() == model.keys()
    for name, tensor in model.items():
        assert result[name].dtype == tensor.dtype
        if tensor.dtype.kind in "fc":
            assert result[name].tobytes() == reference(updates, weights, name).tobytes()
        else:
            heaviest = [update for update, weight in zip(updates, weights, strict=True) if weight == max(weights)]
            assert result[name].tobytes() in {update[name].tobytes() for update in heaviest}


def test_a_tensor_of_many_blocks_is_cut_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 1000)
    monkeypatch.setattr(source, "SMALLEST_BLOCK", 1)
    rng = np.random.default_rng(1)
    shape = (3, 1017)
    model, *updates = ({"w": rng.standard_normal(shape).astype(np.float32), "s": np.ones(1)} for _ in range(4))
    weights = [3, 1, 4]
    result = safetensors.numpy.load_file(make(tmp_path, model, updates, weights))
    assert result["w"].tobytes() == reference(updates, weights, "w").tobytes()


def test_the_size_of_a_block_does_not_change_the_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    model, *updates = ({"w": rng.standard_normal(1000).astype(np.float32)} for _ in range(6))
    weights = [7, 1, 2**31, 3, 5]
    made = set()
    for block in (1, 7, 999, BLOCK):
        monkeypatch.setattr(source, "BLOCK", block)
        monkeypatch.setattr(source, "SMALLEST_BLOCK", 1)
        made.add(make(tmp_path, model, updates, weights).read_bytes())
    assert len(made) == 1


def test_threads_do_not_change_the_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model, *updates = ({"w": rng.standard_normal(3 * BLOCK).astype(np.float32)} for _ in range(4))
    before, made = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.add(make(tmp_path, model, updates, [1, 2, 3]).read_bytes())
    finally:
        torch.set_num_threads(before)
    assert len(made) == 1


def test_equal_updates_give_themselves(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    update = {"w": rng.integers(-1000, 1000, 500).astype(np.float32)}
    result = make(tmp_path, {"w": np.zeros(500, np.float32)}, [update] * 7, [1, 2, 3, 4, 5, 6, 7])
    assert safetensors.numpy.load_file(result)["w"].tobytes() == update["w"].tobytes()


def test_half_precision_is_summed_in_double(tmp_path: Path) -> None:
    # In float16 the sum would overflow; in float32 the small one would vanish.
    updates = [{"w": np.array([60000, 1], np.float16)}, {"w": np.array([60000, 3], np.float16)}]
    result = safetensors.numpy.load_file(make(tmp_path, updates[0], updates, [2**30, 2**30]))
    assert result["w"].tolist() == [60000, 2]


def test_bfloat16_is_averaged_and_rounded_to_nearest_even(tmp_path: Path) -> None:
    files = []
    values = ([1.0, 1.0, -3.5], [1.0078125, 2.0, 3.5])
    for number, row in enumerate(values):
        files.append(tmp_path / f"{number}")
        safetensors.torch.save_file({"w": torch.tensor(row, dtype=torch.bfloat16)}, files[-1])
    target = tmp_path / "new"
    aggregate(Paths(tmp_path), AggregationJob(at(files[0]), tuple(map(at, files)), (1, 1), FED_AVG), target)
    result = safetensors.torch.load_file(target)["w"]
    assert result.dtype == torch.bfloat16
    # 1.00390625 lies in the middle of 1.0 and 1.0078125: even wins.
    assert result.tolist() == [1.0, 1.5, 0.0]


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    # A little more than half way: by way of float32 it would be half way, and then even.
    updates = [{"w": np.array([value], np.float16)} for value in (1.0, 1 + 2**-10)]
    result = make(tmp_path, updates[0], updates, [2**30 - 1, 2**30 + 1])
    assert safetensors.numpy.load_file(result)["w"].tolist() == [1 + 2**-10]


def test_integers_are_not_averaged(tmp_path: Path) -> None:
    counter = "bn.num_batches_tracked"
    model = {"ids": np.array([0, 0]), "mask": np.array([False]), counter: np.array(0)}
    updates = [
        {"ids": np.array([1, 2]), "mask": np.array([True]), counter: np.array(9)},
        {"ids": np.array([3, 4]), "mask": np.array([False]), counter: np.array(5)},
        {"ids": np.array([5, 6]), "mask": np.array([True]), counter: np.array(2)},
    ]
    result = safetensors.numpy.load_file(make(tmp_path, model, updates, [1, 8, 8]))
    # Of the heaviest the one whose file has the smaller digest; of the counters the highest.
    first = min(updates[1:], key=lambda update: hashlib.sha256(write(update)).hexdigest())
    assert result["ids"].tolist() == first["ids"].tolist()
    assert result["mask"].tolist() == first["mask"].tolist()
    assert result[counter].item() == 9


def test_the_new_file_has_the_models_header(tmp_path: Path) -> None:
    files = [tmp_path / "model", tmp_path / "update"]
    safetensors.numpy.save_file({"a": np.zeros(3), "b": np.zeros(2)}, files[0], {"format": "pt", "by": "me"})
    files[1].write_bytes(write({"b": np.ones(2), "a": np.full(3, 2.0)}))
    target = tmp_path / "new"
    aggregate(Paths(tmp_path), AggregationJob(at(files[0]), (at(files[1]),), (1,), FED_AVG), target)
    before, after = files[0].read_bytes(), target.read_bytes()
    assert len(after) == len(before)
    assert after[: 8 + before[0]] == before[: 8 + before[0]]
    assert safetensors.numpy.load(after)["a"].tolist() == [2.0, 2.0, 2.0]


def test_an_element_whose_sum_overflows_does_not_change_its_neighbours(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    updates = [{"w": rng.standard_normal(1000)} for _ in range(3)]
    weights = [3, 5, 2**31]
    expected = reference(updates, weights, "w")
    for update in updates:
        update["w"][500] = 1.7e308
    result = safetensors.numpy.load_file(make(tmp_path, updates[0], updates, weights))["w"]
    assert np.delete(result, 500).tobytes() == np.delete(expected, 500).tobytes()
    assert result[500] == 1.7e308


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_result_that_is_not_finite_is_no_result(tmp_path: Path, dtype: str, bad: float) -> None:
    # Such updates are rejected when they arrive; a disk may make one later.
    updates = [{"w": np.array([1.0, value], NUMPY_DTYPES[dtype])} for value in (2.0, bad)]
    with pytest.raises(AggregationFailed, match="'w' has values that its dtype cannot hold"):
        make(tmp_path, updates[0], updates, [2, 2])


def test_fed_prox_averages_like_fed_avg(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    model, *updates = ({"w": rng.standard_normal(100).astype(np.float32)} for _ in range(4))
    made = {
        make(tmp_path, model, updates, [1, 2, 3], rule).read_bytes() for rule in (FED_AVG, Aggregation(FedProx(0.1)))
    }
    assert len(made) == 1


@pytest.mark.parametrize(("dtype", "bad"), list(itertools.product(FLOATS, [np.nan, np.inf, -np.inf])))
def test_one_bad_value_is_found_wherever_it_is(tmp_path: Path, dtype: str, bad: float) -> None:
    for position in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 4):
        tensor = np.zeros(2 * BLOCK + 5, NUMPY_DTYPES[dtype])
        file = tmp_path / "file"
        file.write_bytes(write({"fine": np.ones(3), "spoilt": tensor}))
        assert check_numbers(file).not_finite is None
        tensor[position] = bad
        file.write_bytes(write({"fine": np.ones(3), "spoilt": tensor}))
        assert check_numbers(file).not_finite == "spoilt"


def test_bfloat16_is_looked_at_too(tmp_path: Path) -> None:
    file = tmp_path / "file"
    safetensors.torch.save_file({"w": torch.tensor([1.0, float("inf")], dtype=torch.bfloat16)}, file)
    assert check_numbers(file).not_finite == "w"


def test_extreme_but_finite_values_pass(tmp_path: Path) -> None:
    file = tmp_path / "file"
    tensors = {
        dtype: np.array([np.finfo(NUMPY_DTYPES[dtype]).max, np.finfo(NUMPY_DTYPES[dtype]).min]) for dtype in FLOATS
    }
    file.write_bytes(write({**tensors, "I64": np.array([2**63 - 1])}))
    assert check_numbers(file).not_finite is None


def test_tensors_may_lie_in_any_order(tmp_path: Path) -> None:
    model = {"a": np.zeros(3), "b": np.zeros(2, np.float32), "c": np.array(0)}
    first = {"c": np.array(7), "a": np.arange(3.0), "b": np.ones(2, np.float32)}
    second = {"b": np.full(2, 3, np.float32), "c": np.array(9), "a": np.arange(3.0) + 2}
    result = safetensors.numpy.load_file(make(tmp_path, model, [first, second], [1, 1]))
    assert {name: tensor.tolist() for name, tensor in result.items()} == {"a": [1, 2, 3], "b": [2, 2], "c": 7}


def test_tensors_need_not_be_aligned(tmp_path: Path) -> None:
    model = {"flag": np.array([True]), "w": np.arange(1001, dtype=np.float64)}
    result = make(tmp_path, model, [model], [3])
    assert safetensors.numpy.load_file(result)["w"].tolist() == model["w"].tolist()


def test_an_update_without_examples_has_no_part_in_the_result(tmp_path: Path) -> None:
    model = {"a": np.zeros(3, np.float32), "count": np.zeros(2, np.int64), "b.num_batches_tracked": np.array(1)}
    counted = {"a": np.ones(3, np.float32), "count": np.ones(2, np.int64), "b.num_batches_tracked": np.array(5)}
    empty = {"a": np.full(3, 9, np.float32), "count": np.full(2, 9), "b.num_batches_tracked": np.array(9)}
    made = safetensors.numpy.load_file(make(tmp_path, model, [empty, counted], [0, 3]))
    assert {name: value.tolist() for name, value in made.items()} == {
        name: value.tolist() for name, value in counted.items()
    }


def test_without_any_examples_the_result_is_the_model(tmp_path: Path) -> None:
    model = {"a": np.arange(3, dtype=np.float32), "b": np.ones(4, np.float16), "count": np.arange(2)}
    update = {name: value + 1 for name, value in model.items()}
    made = safetensors.numpy.load_file(make(tmp_path, model, [update, update], [0, 0]))
    assert all(np.array_equal(made[name], value) and made[name].dtype == value.dtype for name, value in model.items())
