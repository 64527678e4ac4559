"""Predictions by the operator's code: what does not fit is rejected, and bounds of time and memory hold."""

import asyncio
import hashlib
import math
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregations import FED_AVG
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.inference import Inference
from fedround_server.domain.errors import FieldInvalid, PredictionFailed, PredictionLimit
from fedround_server.domain.model import Dtype
from fedround_server.domain.prediction import Array, Prediction
from fedround_server.engine.executor import WorkerEngine
from fedround_server.engine.jobs import AggregationJob, PredictionFault, PredictionJob
from fedround_server.engine.prediction import build_architecture, predict
from fedround_server.wakeups import Hub
from forked import forking_workers
from unit.paths import Paths, at
from unit.safetensors_files import NAMES, write

WEIGHTS = {"weight": np.arange(6.0).reshape(2, 3), "bias": np.array([0.5, -0.5])}
INPUTS = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])


def array(values: np.ndarray) -> Array:
    return Array(Dtype[NAMES[values.dtype]], values.shape, values.tobytes())


def numbers(found: Array) -> np.ndarray:
    return np.frombuffer(found.data, "<f4").reshape(found.shape)


def job(folder: Path, factory: str, inputs: np.ndarray = INPUTS, **changed: Any) -> PredictionJob:
    weights = changed.pop("weights", WEIGHTS)
    model = folder / "model"
    model.write_bytes(write(weights))
    wanted = {"method": "none", "options": {}, "posterior": None, "seed": 1, **changed}
    architecture = factory if ":" in factory else f"unit.architectures:{factory}"
    return PredictionJob(architecture=architecture, models=(at(model),), inputs=array(inputs), **wanted)


def test_a_prediction_is_the_networks_output(tmp_path: Path) -> None:
    found = predict(Paths(tmp_path), job(tmp_path, "linear"))
    expected = INPUTS @ WEIGHTS["weight"].T + WEIGHTS["bias"]
    assert numbers(found.mean).tolist() == expected.tolist()
    assert (found.mean.dtype, found.spread, found.entropies, found.samples) == (Dtype.F32, None, None, 1)


def test_the_architecture_says_what_it_takes(tmp_path: Path) -> None:
    pixels = np.array([[[0, 51], [102, 255]]], np.uint8)
    weights = {"1.weight": np.array([[1.0, 10.0, 100.0, 1000.0]]), "1.bias": np.zeros(1)}
    found = predict(Paths(tmp_path), job(tmp_path, "images", pixels, weights=weights))
    np.testing.assert_allclose(numbers(found.mean), [[2 + 40 + 1000]], rtol=1e-6)
    with pytest.raises(PredictionFault, match=r"the shape is \[1, 4\], the architecture takes \[N, 2, 2\]") as raised:
        predict(Paths(tmp_path), job(tmp_path, "images", pixels.reshape(1, 4), weights=weights))
    assert raised.value.fault == "inputs"


def test_a_network_may_work_in_place(tmp_path: Path) -> None:
    weights = {f"1.{name}": tensor for name, tensor in WEIGHTS.items()}
    once = predict(Paths(tmp_path), job(tmp_path, "in_place", weights=weights))
    file = at(tmp_path / "model")
    thrice = predict(
        Paths(tmp_path),
        PredictionJob("unit.architectures:in_place", (file,) * 3, None, array(INPUTS), "ensemble", {}, 1),
    )
    assert thrice.mean == once.mean
    assert thrice.spread is not None
    assert not numbers(thrice.spread[0]).any()


@pytest.mark.parametrize(
    ("factory", "changed", "fault", "words"),
    [
        ("linear", {"inputs": np.ones((2, 4))}, "inputs", "does not take these inputs: .*shape"),
        ("linear", {"inputs": np.ones(3, np.int64).reshape(1, 3)}, "inputs", "does not take these inputs: .*dtype"),
        ("linear", {"weights": {"weight": np.ones((2, 3))}}, "weights", 'does not fit .*Missing .*"bias"'),
        ("linear", {"weights": {**WEIGHTS, "more": np.ones(1)}}, "weights", 'does not fit .*Unexpected .*"more"'),
        ("linear", {"weights": {**WEIGHTS, "bias": np.ones(3)}}, "weights", "does not fit .*size mismatch for bias"),
        ("linear", {"method": "mc_dropout", "options": {"samples": 2}}, "dropout", "no dropout"),
        ("linear", {"method": "swag", "options": {"samples": 2}}, "weights", "no posterior"),
        (
            "scalar",
            {"weights": {"0.weight": np.ones((1, 3)), "0.bias": np.ones(1)}, "options": {"softmax": True}},
            "architecture",
            "no classes for softmax",
        ),
        ("raises_what_no_other_process_can_read", {}, "inputs", "does not take these inputs: some words"),
        ("loses_rows", {}, "architecture", "a row for each input"),
        ("sums", {}, "architecture", "a row for each input"),
        ("returns_a_list", {}, "architecture", "must return one tensor"),
        ("preprocess_fails", {}, "inputs", "preprocessing does not take these inputs: some words"),
        ("preprocess_loses_rows", {}, "architecture", "preprocessing must return .* a row for each input"),
        ("preprocess_sums", {}, "architecture", "preprocessing must return .* a row for each input"),
        ("preprocess_returns_none", {}, "architecture", "preprocessing must return one tensor"),
    ],
)
def test_what_does_not_fit_is_rejected(
    tmp_path: Path, factory: str, changed: dict[str, Any], fault: str, words: str
) -> None:
    with pytest.raises(PredictionFault, match=f"(?s){words}") as raised:
        predict(Paths(tmp_path), job(tmp_path, factory, **changed))
    assert raised.value.fault == fault


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("unit.architectures:fails", "the factory failed: .*own words"),
        ("unit.architectures:exits", "the factory failed: a library is missing"),
        ("unit.architectures:makes_a_list", "the factory made a list, no torch.nn.Module"),
        ("unit.architectures:not_callable", "is not callable"),
        ("unit.architectures:unheard_of", "cannot be imported: .*no attribute 'unheard_of'"),
        ("no.such.module:make", "cannot be imported: No module named 'no'"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_rejected(tmp_path: Path, architecture: str, words: str) -> None:
    with pytest.raises(PredictionFault, match=words) as raised:
        build_architecture(architecture)
    assert raised.value.fault == "architecture"
    with pytest.raises(PredictionFault, match=words):
        predict(Paths(tmp_path), job(tmp_path, architecture))


# Loading torch takes a process a second, so the tests share one; a process that dies is replaced.
in_shared_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine makes its files."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module", autouse=True)
def forked_workers() -> Iterator[None]:
    """Loading torch takes a process a second, so they are forked."""
    with forking_workers():
        yield


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[WorkerEngine]:
    with WorkerEngine(Paths(folder), predict_bytes=512 << 20) as engine:
        yield engine


async def ask(engine: WorkerEngine, work: PredictionJob) -> Prediction:
    """Asks like a caller, who gets the errors of the domain."""
    parts: Any = {"store": None, "background": None, "blobs": None, "engine": engine, "hub": Hub()}
    return await Inference(Context(**parts))._run(work)


async def aggregate(engine: WorkerEngine, folder: Path) -> None:
    model = folder / "model"
    made = await engine.aggregate(AggregationJob(at(model), (at(model),), (1,), FED_AVG))
    assert made.blob.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()


@in_shared_loop
@pytest.mark.chaos
async def test_an_endless_prediction_is_ended_and_blocks_no_other(engine: WorkerEngine, tmp_path: Path) -> None:
    fine = job(tmp_path, "linear")
    expected = await ask(engine, fine)
    engine._predict_seconds = 1
    endless = asyncio.create_task(ask(engine, job(tmp_path, "never_ends")))
    await asyncio.sleep(0)
    await aggregate(engine, tmp_path)
    with pytest.raises(PredictionLimit, match="takes longer than the operator allows"):
        await endless
    engine._predict_seconds = math.inf
    await aggregate(engine, tmp_path)
    assert await ask(engine, fine) == expected


@in_shared_loop
async def test_starting_a_process_is_not_the_predictions_time(
    engine: WorkerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine._predictor.replace()
    ready = []
    timeout = asyncio.timeout

    def begin(delay: float) -> asyncio.Timeout:
        assert engine._predictor._pool is not None
        ready.append(engine._predictor._pool.prepared.done())
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", begin)
    await engine.predict(job(tmp_path, "linear"))
    assert ready == [True]


@in_shared_loop
@pytest.mark.parametrize("taker", ["of_torch", "of_numpy", "of_python", "when_built"])
async def test_memory_is_bounded(engine: WorkerEngine, tmp_path: Path, taker: str) -> None:
    with pytest.raises(PredictionLimit, match="needs more memory than the operator allows"):
        await ask(engine, job(tmp_path, f"takes_memory_{taker}"))
    await aggregate(engine, tmp_path)
    assert (await ask(engine, job(tmp_path, "linear"))).samples == 1


async def begin(engine: WorkerEngine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> asyncio.Task[Prediction]:
    """Begins a prediction that does not end, in a process that is started with the environment that it needs."""
    begun = folder / "begun"
    monkeypatch.setenv("BEGUN", str(begun))
    engine._predictor.replace()
    endless = asyncio.create_task(engine.predict(job(folder, "never_ends")))
    while not begun.exists():
        await asyncio.sleep(0.001)
    return endless


@in_shared_loop
@pytest.mark.chaos
async def test_a_cancelled_call_frees_the_process(
    engine: WorkerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = await begin(engine, tmp_path, monkeypatch)
    waiting = asyncio.create_task(engine.predict(job(tmp_path, "linear")))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert (await waiting).samples == 1
    assert cancelled.cancelled()


@in_shared_loop
async def test_an_engine_that_is_closed_starts_nothing_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = multiprocessing.active_children()
    with WorkerEngine(Paths(tmp_path)) as engine:
        cancelled = await begin(engine, tmp_path, monkeypatch)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert set(multiprocessing.active_children()) == set(before)


@in_shared_loop
async def test_errors_come_back_from_the_process(engine: WorkerEngine, tmp_path: Path) -> None:
    with pytest.raises(PredictionFailed, match="the factory failed"):
        await ask(engine, job(tmp_path, "exits"))
    with pytest.raises(FieldInvalid, match="does not take these inputs: some words"):
        await ask(engine, job(tmp_path, "raises_what_no_other_process_can_read"))
    with pytest.raises(PredictionFailed, match="the architecture ends its process"):
        await ask(engine, job(tmp_path, "dies"))
    with pytest.raises(PredictionFault, match="cannot be imported"):
        await engine.check_architectures(["unit.architectures:linear", "unit.architectures:unheard_of"])
    assert (await ask(engine, job(tmp_path, "linear"))).samples == 1
