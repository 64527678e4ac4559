"""Updates that are differences in half precision: let in as a whole, measured as they are, and added exactly."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from aggregations import FED_AVG
from fedround_server.domain.errors import UpdateMismatch
from fedround_server.domain.model import Dtype, TensorSpec
from fedround_server.domain.transport import Transport, UpdatePrecision
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format import tensors as engine_tensors
from fedround_server.engine.format.compare import check_same
from fedround_server.engine.format.gate import HeaderGate
from fedround_server.engine.format.manifest import make_header
from fedround_server.engine.format.tensors import BLOCK
from fedround_server.engine.jobs import AggregationJob
from unit import exactly
from unit.checks import check_numbers
from unit.paths import Paths, at

Tensors = dict[str, np.ndarray]
FLOAT16 = Transport(precision=UpdatePrecision.FLOAT16)
SHAPES = {"wide": (np.float64, (3, 5)), "w": (np.float32, (4, 7)), "half": (np.float16, (6,)), "count": (np.int64, ())}
MANIFEST = {
    "wide": TensorSpec(Dtype.F64, (3, 5)),
    "w": TensorSpec(Dtype.F32, (4, 7)),
    "half": TensorSpec(Dtype.F16, (6,)),
    "count": TensorSpec(Dtype.I64, ()),
}


def model(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape) * 10).astype(dtype) for name, (dtype, shape) in SHAPES.items()}


def halves(tensors: Tensors, base: Tensors) -> Tensors:
    """The update with differences in float16."""
    return {
        name: (tensor.astype(np.float64) - base[name]).astype(np.float16) if tensor.dtype.itemsize > 2 else tensor
        for name, tensor in tensors.items()
        if tensor.dtype.kind == "f"
    } | {"count": tensors["count"]}


def rebuilt(update: Tensors, base: Tensors, name: str) -> np.ndarray:
    """What an update says, in float64."""
    if update[name].dtype == base[name].dtype:
        return update[name].astype(np.float64)
    most = float(np.finfo(base[name].dtype).max)
    return np.clip(base[name].astype(np.float64) + update[name].astype(np.float64), -most, most)


def make(folder: Path, base: Tensors, updates: list[Tensors], weights: list[int]) -> Tensors:
    files = []
    for number, tensors in enumerate([base, *updates]):
        files.append(folder / f"{number}.safetensors")
        files[-1].write_bytes(safetensors.numpy.save(tensors))
    target = folder / "new.safetensors"
    target.unlink(missing_ok=True)
    first, *others = map(at, files)
    job = AggregationJob(first, tuple(others), tuple(weights), FED_AVG, FLOAT16)
    aggregate(Paths(folder), job, target)
    return safetensors.numpy.load_file(target)


@given(st.integers(0, 2**32), st.lists(st.tuples(st.booleans(), st.integers(1, 2**31)), min_size=1, max_size=5))
def test_the_result_is_the_references_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, votes: list[tuple[bool, int]]
) -> None:
    base = model(seed)
    full = [model(seed + number + 1) for number in range(len(votes))]
    updates = [halves(one, base) if narrow else one for one, (narrow, _) in zip(full, votes, strict=True)]
    weights = [weight for _, weight in votes]
    result = make(tmp_path_factory.mktemp("round"), base, updates, weights)
    assert {name: tensor.dtype for name, tensor in result.items()} == {name: t.dtype for name, t in base.items()}
    for name, tensor in base.items():
        if tensor.dtype.kind != "f":
            heaviest = [update for update, weight in zip(updates, weights, strict=True) if weight == max(weights)]
            assert result[name] in [update[name] for update in heaviest]
            continue
        expected = exactly.mean([rebuilt(update, base, name) for update in updates], weights, tensor.dtype)
        assert result[name].tobytes() == expected.tobytes()
        # No farther from what full updates give than half a unit of the differences, and one of the result.
        exact = sum(one[name].astype(np.float64) * weight for one, weight in zip(full, weights, strict=True))
        step = max(np.abs(one[name].astype(np.float64) - base[name]).max() for one in full) * 2.0**-11
        bound = step + np.finfo(tensor.dtype).eps * np.abs(tensor).max() * 4 + 2.0**-24
        assert np.abs(result[name] - exact / sum(weights)).max() <= bound


def test_a_tensor_of_many_blocks_is_cut_without_a_seam(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = {"w": rng.standard_normal((3, BLOCK + 17)).astype(np.float32)}
    update = {"w": rng.standard_normal((3, BLOCK + 17)).astype(np.float16)}
    result = make(tmp_path, base, [update], [3])
    assert result["w"].tobytes() == rebuilt(update, base, "w").astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_out_of_range_ends_at_the_largest_number(tmp_path: Path, dtype: type) -> None:
    most = np.finfo(dtype).max
    base = {"w": np.array([most, -most, 1], dtype)}
    far = {"w": np.array([60000, -60000, 1], np.float16)}
    assert np.array_equal(make(tmp_path, base, [far, far], [1, 2])["w"], np.array([most, -most, 2], dtype))


def test_the_model_is_not_written_to(tmp_path: Path) -> None:
    base = {"w": np.ones(5)}
    assert make(tmp_path, base, [{"w": np.ones(5, np.float16)}], [1])["w"].tolist() == [2] * 5
    assert safetensors.numpy.load_file(tmp_path / "0.safetensors")["w"].tolist() == [1] * 5


def test_other_types_than_the_rounds_are_no_differences(tmp_path: Path) -> None:
    base = {"w": np.ones(5, np.float32), "v": np.ones(5, np.float32)}
    for other in ({"w": np.ones(5), "v": np.ones(5)}, {"w": np.ones(5, np.float16), "v": base["v"]}):
        with pytest.raises(UpdateMismatch):
            make(tmp_path, base, [other], [1])


@given(
    st.lists(st.floats(-1000, 1000, width=16), min_size=1, max_size=30),
    st.lists(st.floats(-1000, 1000, width=16), min_size=1, max_size=30),
    st.sampled_from([1, 3, 1000]),
)
def test_the_norm_is_that_of_the_differences(
    tmp_path_factory: pytest.TempPathFactory, wide: list[float], half: list[float], block: int
) -> None:
    folder = tmp_path_factory.mktemp("norm")
    base = {"w": np.full(len(wide), 7, np.float32), "half": np.full(len(half), 3, np.float16)}
    update = {"w": np.array(wide, np.float16), "half": np.array(half, np.float16)}
    for name, tensors in (("base", base), ("update", update)):
        (folder / name).write_bytes(safetensors.numpy.save(tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_tensors, "BLOCK", block)
        found = check_numbers(folder / "update", folder / "base")
    # The tensor that is half precision in the model, too, is no difference.
    assert found.norm == pytest.approx(np.sqrt(np.sum(np.square(wide)) + np.sum(np.square(np.array(half) - 3))))


def test_a_difference_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(safetensors.numpy.save({"w": np.ones(3, np.float32)}))
    (tmp_path / "update").write_bytes(safetensors.numpy.save({"w": np.array([0, np.inf, 0], np.float16)}))
    for origin in (None, tmp_path / "base"):
        assert check_numbers(tmp_path / "update", origin).not_finite == "w"


def test_all_wide_tensors_are_differences_or_none() -> None:
    narrow = Transport(precision=UpdatePrecision.BFLOAT16).encoded(MANIFEST)
    assert [spec.dtype for spec in narrow.values()] == [Dtype.BF16, Dtype.BF16, Dtype.F16, Dtype.I64]
    for wide, w in itertools.product((Dtype.F64, Dtype.BF16, Dtype.F16), (Dtype.F32, Dtype.BF16)):
        sent = MANIFEST | {"wide": TensorSpec(wide, (3, 5)), "w": TensorSpec(w, (4, 7))}
        gate = HeaderGate(partial(check_same, expected=MANIFEST, differences=narrow))
        if sent in (MANIFEST, narrow):
            gate.feed(make_header(sent))
            assert gate.layout is not None
        else:
            words = "differences of all F32 and F64 tensors, or of none" if Dtype.BF16 in (wide, w) else "'wide' is F16"
            with pytest.raises(UpdateMismatch, match=words):
                gate.feed(make_header(sent))
    with pytest.raises(UpdateMismatch, match=r"'half' is F32\[6\], and the round asks for F16\[6\]$"):
        HeaderGate(partial(check_same, expected=MANIFEST, differences=narrow)).feed(
            make_header(MANIFEST | {"half": TensorSpec(Dtype.F32, (6,))})
        )
