"""Updates whose tensors come in different precisions: which tensors they have, their scales, and their aggregate."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from aggregations import FED_AVG
from fedround_server.domain.errors import FieldInvalid, TensorsMismatch, UpdateMismatch
from fedround_server.domain.model import Dtype, TensorSpec
from fedround_server.domain.transport import TensorPrecision, Transport, UpdatePrecision
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format import tensors as engine_tensors
from fedround_server.engine.format.compare import check_same
from fedround_server.engine.jobs import AggregationJob
from unit import exactly
from unit.checks import check_numbers
from unit.paths import Paths, at

Tensors = dict[str, np.ndarray]
INT8, FULL = UpdatePrecision.INT8, UpdatePrecision.FULL
DTYPES = {
    Dtype.F32: np.float32,
    Dtype.F64: np.float64,
    Dtype.F16: np.float16,
    Dtype.I64: np.int64,
    Dtype.I8: np.int8,
}
MANIFEST = {
    "body.w": TensorSpec(Dtype.F32, (3, 7)),
    "body.wide": TensorSpec(Dtype.F64, (40,)),
    "head.w": TensorSpec(Dtype.F32, (5,)),
    "head.bias": TensorSpec(Dtype.F32, ()),
    "half": TensorSpec(Dtype.F16, (2,)),
    "count": TensorSpec(Dtype.I64, ()),
    "small": TensorSpec(Dtype.I8, (2,)),
    "none": TensorSpec(Dtype.F32, (0, 2)),
}
MIXED = Transport(
    (
        TensorPrecision("*.bias", FULL),
        TensorPrecision("body.*", INT8, block_size=16),
        TensorPrecision("*.w", UpdatePrecision.FLOAT16),
    ),
    INT8,
)


def test_the_first_rule_that_matches_applies() -> None:
    assert MIXED.encoded(MANIFEST) == {
        "body.w": TensorSpec(Dtype.I8, (3, 7)),
        "body.w.int8_scales": TensorSpec(Dtype.F32, (2,)),
        "body.wide": TensorSpec(Dtype.I8, (40,)),
        "body.wide.int8_scales": TensorSpec(Dtype.F32, (3,)),
        "head.w": TensorSpec(Dtype.F16, (5,)),
        "head.bias": TensorSpec(Dtype.F32, ()),
        "half": TensorSpec(Dtype.F16, (2,)),
        "count": TensorSpec(Dtype.I64, ()),
        "small": TensorSpec(Dtype.I8, (2,)),
        "none": TensorSpec(Dtype.I8, (0, 2)),
        "none.int8_scales": TensorSpec(Dtype.F32, (0,)),
    }
    assert MIXED.block_sizes(MANIFEST) == {"body.w": 16, "body.wide": 16, "none": 256}
    assert Transport().encoded(MANIFEST) == MANIFEST


def test_rules_must_fit_the_model() -> None:
    MIXED.check(MANIFEST)
    with pytest.raises(FieldInvalid, match=r"'tail\.\*': no tensor of the model matches") as error:
        replace(MIXED, rules=(*MIXED.rules, TensorPrecision("tail.*", FULL))).check(MANIFEST)
    assert error.value.field == "spec.tensor_precisions[3].tensors"
    for manifest, words in (
        ({"a": TensorSpec(Dtype.F32, (2,)), "a.int8_scales": TensorSpec(Dtype.I64, ())}, "is a tensor of the model"),
        ({"a" * 501: TensorSpec(Dtype.F32, (2,))}, "more than 512 characters"),
        ({str(number): TensorSpec(Dtype.F32, ()) for number in range(10_001)}, "asks for 20002 tensors"),
    ):
        with pytest.raises(FieldInvalid, match=words):
            Transport(precision=INT8).check(manifest)
        Transport().check(manifest)
    # A tensor of integers has no scales whose name another one could have.
    Transport(precision=INT8).check({"a": TensorSpec(Dtype.I8, (2,)), "a.int8_scales": TensorSpec(Dtype.F16, (1,))})


def test_what_an_update_should_have_is_named() -> None:
    check = partial(check_same, expected=MANIFEST, differences=MIXED.encoded(MANIFEST))
    encoded = dict(MIXED.encoded(MANIFEST))
    check(encoded)
    check(dict(MANIFEST))
    for changed, words in (
        ({"body.w.int8_scales": TensorSpec(Dtype.F32, (21,))}, r"is F32\[21\], and the round asks for F32\[2\]"),
        ({"head.bias": TensorSpec(Dtype.F16, ())}, r"'head.bias' is F16\[\], and the round asks for F32\[\]"),
        ({"head.w": TensorSpec(Dtype.F32, (5,))}, r"'head.w' is F32\[5\], and the round asks for F16\[5\]"),
        ({"body.w": TensorSpec(Dtype.I8, (7, 3))}, r"is I8\[7, 3\], and the round asks for I8\[3, 7\]"),
    ):
        with pytest.raises(UpdateMismatch, match=words + ": differences of the tensors that spec.update_precision"):
            check(encoded | changed)
    without = {name: spec for name, spec in encoded.items() if name != "body.w.int8_scales"}
    with pytest.raises(TensorsMismatch, match=r"lacks .*'body\.w\.int8_scales'.*one for each block"):
        check(without)
    with pytest.raises(TensorsMismatch, match=r"does not ask for: 'head\.w\.int8_scales'"):
        check(encoded | {"head.w.int8_scales": TensorSpec(Dtype.F32, (1,))})
    with pytest.raises(
        UpdateMismatch, match=r"is BF16\[3, 7\], and the round asks for F32\[3, 7\], or I8\[3, 7\] as a"
    ):
        check({**MANIFEST, "body.w": TensorSpec(Dtype.BF16, (3, 7))})


def encode(update: Tensors, base: Tensors, transport: Transport, rng: np.random.Generator) -> Tensors:
    """An update with differences, as a participant might round them."""
    found: Tensors = {}
    sizes = transport.block_sizes(manifest_of(base))
    for name, spec in transport.encoded(manifest_of(base)).items():
        if name not in base:
            continue
        if spec.dtype is Dtype.I8 and name in sizes:
            found[name] = rng.integers(-127, 128, base[name].shape).astype(np.int8)
            count = -(-base[name].size // sizes[name])
            found[f"{name}.int8_scales"] = (10.0 ** rng.uniform(-8, 2, count)).astype(np.float32)
        elif spec.dtype is Dtype.F16 and base[name].dtype != np.float16:
            found[name] = np.asarray(update[name].astype(np.float64) - base[name]).astype(np.float16)
        else:
            found[name] = update[name]
    return found


def manifest_of(tensors: Tensors) -> dict[str, TensorSpec]:
    names = {np.dtype(numpy): dtype for dtype, numpy in DTYPES.items()}
    return {name: TensorSpec(names[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}


def rebuilt(update: Tensors, base: Tensors, name: str, sizes: dict[str, int]) -> np.ndarray:
    """What an update says, in float64: the model plus integer times scale."""
    if update[name].dtype == base[name].dtype:
        return update[name].astype(np.float64)
    difference = update[name].astype(np.float64)
    if name in sizes:
        scales = np.repeat(update[f"{name}.int8_scales"].astype(np.float64), sizes[name])
        difference = difference * scales[: difference.size].reshape(difference.shape)
    return base[name].astype(np.float64) + difference


def model(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    kinds = {
        Dtype.F32: np.float32,
        Dtype.F64: np.float64,
        Dtype.F16: np.float16,
        Dtype.I64: np.int64,
        Dtype.I8: np.int8,
    }
    return {
        name: np.asarray(rng.standard_normal(spec.shape) * 10).astype(kinds[spec.dtype])
        for name, spec in MANIFEST.items()
    }


def make(folder: Path, base: Tensors, updates: list[Tensors], weights: list[int], transport: Transport) -> bytes:
    files = []
    for number, tensors in enumerate([base, *updates]):
        files.append(folder / f"{number}.safetensors")
        files[-1].write_bytes(safetensors.numpy.save(tensors))
    target = folder / "new.safetensors"
    target.unlink(missing_ok=True)
    first, *others = map(at, files)
    job = AggregationJob(first, tuple(others), tuple(weights), FED_AVG, transport)
    aggregate(Paths(folder), job, target)
    return target.read_bytes()


@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.booleans(), st.integers(1, 2**31)), min_size=1, max_size=4),
    st.sampled_from([1, 3, 16, 1000]),
)
def test_the_result_is_the_references_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, votes: list[tuple[bool, int]], block: int
) -> None:
    base, rng = model(seed), np.random.default_rng(seed)
    full = [model(seed + number + 1) for number in range(len(votes))]
    updates = [
        encode(one, base, MIXED, rng) if is_encoded else one for one, (is_encoded, _) in zip(full, votes, strict=True)
    ]
    weights = [weight for _, weight in votes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_tensors, "BLOCK", block)
        result = safetensors.numpy.load(make(tmp_path_factory.mktemp("round"), base, updates, weights, MIXED))
    assert manifest_of(result) == MANIFEST
    sizes = dict(MIXED.block_sizes(MANIFEST))
    for name in ("body.w", "body.wide", "head.w", "head.bias", "half", "none"):
        parts = [rebuilt(update, base, name, sizes) for update in updates]
        assert result[name].tobytes() == exactly.mean(parts, weights, base[name].dtype).tobytes(), name


@pytest.mark.parametrize("block_size", [16, 256, 65_536])
def test_a_tensor_of_many_blocks_is_cut_without_a_seam(tmp_path: Path, block_size: int) -> None:
    rng = np.random.default_rng(1)
    base = {"w": rng.standard_normal((3, engine_tensors.BLOCK // 2 + 17)).astype(np.float32)}
    transport = Transport((TensorPrecision("w", INT8, block_size=block_size),))
    update = encode(base, base, transport, rng)
    result = safetensors.numpy.load(make(tmp_path, base, [update], [3], transport))
    assert result["w"].tobytes() == rebuilt(update, base, "w", {"w": block_size}).astype(np.float32).tobytes()


def test_sums_out_of_range_end_at_the_largest_number(tmp_path: Path) -> None:
    most = np.finfo(np.float32).max
    update = {"w": np.array([127, -127, 0], np.int8), "w.int8_scales": np.array([most], np.float32)}
    base = {"w": np.array([1, 1, 1], np.float32)}
    result = safetensors.numpy.load(make(tmp_path, base, [update, update], [1, 2], Transport(precision=INT8)))
    assert np.array_equal(result["w"], np.array([most, -most, 1], np.float32))


@given(st.lists(st.integers(-127, 127), min_size=1, max_size=60), st.sampled_from([1, 7, 1000]))
def test_the_norm_is_that_of_the_differences(
    tmp_path_factory: pytest.TempPathFactory, integers: list[int], block: int
) -> None:
    folder = tmp_path_factory.mktemp("norm")
    count = -(-len(integers) // 16)
    scales = np.arange(count, dtype=np.float32) / 4
    update = {"w": np.array(integers, np.int8), "w.int8_scales": scales, "bias": np.array([5], np.float32)}
    base = {"w": np.full(len(integers), 7, np.float32), "bias": np.array([3], np.float32)}
    for name, tensors in (("base", base), ("update", update)):
        (folder / name).write_bytes(safetensors.numpy.save(tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_tensors, "BLOCK", block)
        found = check_numbers(folder / "update", folder / "base", block_sizes={"w": 16})
    difference = np.array(integers) * np.repeat(scales.astype(np.float64), 16)[: len(integers)]
    assert found.norm == pytest.approx(np.sqrt(np.sum(np.square(difference)) + 4))


@pytest.mark.parametrize("with_origin", [False, True])
@pytest.mark.parametrize(
    ("changed", "not_finite", "problem"),
    [
        ({}, None, None),
        ({"w.int8_scales": np.array([1, np.nan], np.float32)}, "w.int8_scales", None),
        ({"w.int8_scales": np.array([np.inf, 0], np.float32)}, "w.int8_scales", None),
        ({"w.int8_scales": np.array([1, -1e-30], np.float32)}, None, "tensor 'w.int8_scales' has a negative scale"),
        ({"w": np.array([0] * 19 + [-128], np.int8)}, None, "tensor 'w' has the value -128"),
    ],
)
def test_scales_and_integers_out_of_range_are_found(
    tmp_path: Path, changed: Tensors, not_finite: str | None, problem: str | None, with_origin: bool
) -> None:
    update = {"w": np.ones(20, np.int8), "w.int8_scales": np.zeros(2, np.float32), **changed}
    (tmp_path / "update").write_bytes(safetensors.numpy.save(update))
    (tmp_path / "base").write_bytes(safetensors.numpy.save({"w": np.ones(20, np.float32)}))
    origin = tmp_path / "base" if with_origin else None
    found = check_numbers(tmp_path / "update", origin, block_sizes={"w": 16})
    assert found.not_finite == not_finite
    assert (found.problem or "").startswith(problem or "")
    assert (found.problem is None) == (problem is None)
