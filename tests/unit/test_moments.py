"""SWAG's posterior: the moments of all participants, against NumPy in float64."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from fedround_server.domain.model import Dtype, TensorSpec
from fedround_server.domain.swag_moments import SwagMoments, moments
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.uncertainty.moments import collect
from fedround_server.engine.uncertainty.swag import draw
from unit.paths import Paths, at
from unit.safetensors_files import write

Tensors = dict[str, np.ndarray]


def gather(iterates: dict[str, np.ndarray], rank: int = 0) -> Tensors:
    """What a participant sends about weights along its training; their first dimension is time."""
    found: Tensors = {}
    for name, values in iterates.items():
        found[f"mean/{name}"] = np.asarray(values.mean(0))
        found[f"second/{name}"] = np.asarray(np.square(values).mean(0))
        for column in range(rank):
            deviation = values[len(values) - rank + column] - values.mean(0)
            found[f"deviation/{column}/{name}"] = np.asarray(deviation, np.float32)
    return found


def make(folder: Path, updates: list[Tensors], weights: list[int]) -> Path:
    """Aggregates moments, and returns the posterior's file."""
    files = []
    for number, tensors in enumerate(updates):
        files.append(folder / f"{number}.safetensors")
        files[-1].write_bytes(write(tensors))
    target = folder / "posterior.safetensors"
    target.unlink(missing_ok=True)
    job = AggregationJob(at(folder / "no model"), tuple(map(at, files)), tuple(weights), SwagMoments())
    blob = collect(Paths(folder), job, target)
    assert blob.size_bytes == target.stat().st_size
    return target


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Tensors], list[int], int]:
    shapes = draw(
        st.dictionaries(st.sampled_from(["a", "b/c", "z.w"]), array_shapes(min_dims=0, max_dims=3), min_size=1)
    )
    rank, count = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    updates = [
        gather({name: rng.standard_normal((5, *shape)) * 10 for name, shape in shapes.items()}, rank)
        for _ in range(count)
    ]
    return updates, draw(st.lists(st.integers(1, 2**31), min_size=count, max_size=count)), rank


@given(rounds())
@settings(deadline=None)
def test_the_posterior_is_the_references(
    tmp_path_factory: pytest.TempPathFactory, a_round: tuple[list[Tensors], list[int], int]
) -> None:
    updates, weights, rank = a_round
    found = safetensors.numpy.load_file(make(tmp_path_factory.mktemp("round"), updates, weights))
    names = {name.removeprefix("mean/") for name in updates[0] if name.startswith("mean/")}
    expected: Tensors = {}
    for name in names:
        for moment in (f"mean/{name}", f"second/{name}"):
            total = np.zeros(updates[0][moment].shape)
            for update, weight in zip(updates, weights, strict=True):
                total += update[moment] * np.float64(weight)
            expected[moment] = np.asarray(total / np.float64(sum(weights)))
        for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
            for column in range(rank):
                share = np.sqrt(weight / sum(weights) / max(rank - 1, 1))
                deviation = update[f"deviation/{column}/{name}"].astype(np.float64) * share
                expected[f"deviation/{number * rank + column}/{name}"] = np.asarray(deviation, np.float32)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes()


def test_the_moments_are_those_of_all_weights_in_one_place(tmp_path: Path) -> None:
    """Participants far apart make a wide posterior: the variance between them counts too."""
    rng = np.random.default_rng(1)
    counts = [10, 30, 20]
    runs = [center + rng.standard_normal((count, 7)) for center, count in zip([-5, 0, 8], counts, strict=True)]
    found = safetensors.numpy.load_file(make(tmp_path, [gather({"w": run}) for run in runs], counts))
    pooled = np.concatenate(runs)
    np.testing.assert_allclose(found["mean/w"], pooled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["second/w"] - found["mean/w"] ** 2, pooled.var(0), rtol=1e-12)


def test_the_low_rank_part_is_the_mean_of_the_covariances_inside(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rank, weights = 20, [1, 2, 5]
    runs = [rng.standard_normal((rank, 3)) @ rng.standard_normal((3, 3)) for _ in weights]
    found = safetensors.numpy.load_file(make(tmp_path, [gather({"w": run}, rank) for run in runs], weights))
    columns = np.stack([found[f"deviation/{number}/w"] for number in range(rank * len(weights))]).astype(np.float64)
    expected = np.average([np.cov(run.T) for run in runs], axis=0, weights=weights)
    np.testing.assert_allclose(columns.T @ columns, expected, rtol=1e-5, atol=1e-6)


def test_a_posterior_may_have_more_tensors_than_a_file_that_is_sent(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    layers, rank, participants = 120, 20, 10
    updates = [
        gather({f"layer.{number}": rng.standard_normal((rank, 1)) for number in range(layers)}, rank)
        for _ in range(participants)
    ]
    with TensorFile(make(tmp_path, updates, [1] * participants)) as posterior:
        assert len(posterior.layout.manifest) == layers * (2 + rank * participants) > 20_000
        assert draw(posterior, ["layer.7"], torch.Generator())["layer.7"].isfinite().all()


@pytest.mark.parametrize(("name", "words"), [("mean/w",) * 2, ("second/w",) * 2, ("deviation/1/w", "deviation/3/w")])
def test_moments_that_are_not_finite_make_no_posterior(tmp_path: Path, name: str, words: str) -> None:
    update = gather({"w": np.ones((5, 3))}, 2)
    spoilt = {**update, name: np.full_like(update[name], np.inf)}
    with pytest.raises(AggregationFailed, match=words):
        make(tmp_path, [update, spoilt], [1, 1])


def test_moments_describe_floating_tensors_only() -> None:
    model = {
        "w": TensorSpec(Dtype.BF16, (2, 3)),
        "bn.running_mean": TensorSpec(Dtype.F32, (3,)),
        "bn.num_batches_tracked": TensorSpec(Dtype.I64, ()),
    }
    assert moments({"n": TensorSpec(Dtype.I64, ())}, 3) == {}
    assert moments(model, 1) == {
        "mean/w": TensorSpec(Dtype.F64, (2, 3)),
        "second/w": TensorSpec(Dtype.F64, (2, 3)),
        "deviation/0/w": TensorSpec(Dtype.F32, (2, 3)),
        "mean/bn.running_mean": TensorSpec(Dtype.F64, (3,)),
        "second/bn.running_mean": TensorSpec(Dtype.F64, (3,)),
        "deviation/0/bn.running_mean": TensorSpec(Dtype.F32, (3,)),
    }


def test_without_any_examples_all_moments_have_the_same_weight(tmp_path: Path) -> None:
    updates = [gather({"a": np.full((5, 2), value)}, rank=2) for value in (1.0, 3.0)]
    unweighted = make(tmp_path, updates, [0, 0]).read_bytes()
    assert unweighted == make(tmp_path, updates, [1, 1]).read_bytes()
    weighted = safetensors.numpy.load_file(make(tmp_path, updates, [0, 7]))
    assert weighted["mean/a"].tolist() == [3, 3]
