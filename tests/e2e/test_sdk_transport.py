"""Trainings whose updates are sent in int8, or by rules for single tensors, with the SDK against a real server."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import Federation, federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_client.payload import CHUNK
from fedround_client.round_runner import RoundRunner
from servers import Server

State = dict[str, Any]
CLASSES, FEATURES = 10, 200
RNG = np.random.default_rng(7)
CENTERS = RNG.standard_normal((CLASSES, FEATURES)).astype(np.float32)


def points(number: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points around the centers, and their classes; participants have more of some classes than of others."""
    rng = np.random.default_rng(number)
    weights = rng.dirichlet(np.ones(CLASSES)) if number < 3 else np.full(CLASSES, 1 / CLASSES)
    labels = rng.choice(CLASSES, count, p=weights)
    return (CENTERS[labels] + 4 * rng.standard_normal((count, FEATURES))).astype(np.float32), labels


def accuracy(model: State) -> float:
    inputs, labels = points(99, 4000)
    return float(((inputs @ model["w"] + model["bias"]).argmax(axis=1) == labels).mean())


def softmax_regression(number: int) -> tuple[Any, ...]:
    inputs, labels = points(number, 300)
    targets = np.eye(CLASSES, dtype=np.float32)[labels]

    def train(model: State, round_: fr.Round) -> tuple[State, int]:
        for _ in range(5):
            scores = inputs @ model["w"] + model["bias"]
            probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
            errors = probabilities / probabilities.sum(axis=1, keepdims=True) - targets
            model["w"] -= np.float32(0.05) * inputs.T @ errors / np.float32(len(inputs))
            model["bias"] -= np.float32(0.05) * errors.mean(axis=0)
        return model, len(inputs)

    return (train,)


def learn(folder: Path, **spec: Any) -> tuple[State, list[int]]:
    """Trains; returns the last version, and the sizes of all files that the server has, the updates' first."""
    model = {"w": np.zeros((FEATURES, CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}
    with Server(folder / "data") as server, federation(server, 3) as group:
        training = group.run(softmax_regression, model, target_num_updates=10, **spec)
        assert training.state == TRAINING_STATE_COMPLETED
        learned = group.actor.download_model(training.model_id)
    return learned, sorted(path.stat().st_size for path in (folder / "data").glob("objects/*/*"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The accuracy of a model that was trained with full updates."""
    learned, sizes = learn(tmp_path_factory.mktemp("full"))
    assert min(sizes) > FEATURES * CLASSES * 4
    return accuracy(learned)


@pytest.mark.parametrize(
    "spec",
    [
        {"update_precision": "INT8"},
        {"update_precision": "INT8", "stochastic_rounding": True},
        {
            "tensor_precisions": {
                "bias": "FULL",
                "*": fr.TensorPrecision("INT8", stochastic_rounding=True, block_size=64),
            }
        },
    ],
    ids=["nearest", "stochastic", "rules"],
)
def test_int8_learns_as_well_as_full_precision(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spec: dict[str, Any],
    expected: float,
) -> None:
    monkeypatch.setattr("fedround_client.differences.secrets.randbits", lambda bits: 1)
    learned, sizes = learn(tmp_path, **spec)
    assert expected > 0.75
    assert abs(accuracy(learned) - expected) < 0.01
    # 30 updates: a byte for each number, a scale for each block, and the header.
    assert max(sizes[:30]) < FEATURES * CLASSES * (1 + 4 / 64) + 600
    assert not [record for record in caplog.records if "is sent in full" in record.getMessage()]


def test_differences_that_int8_cannot_hold_are_sent_in_full(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def train(model: State, round_: fr.Round) -> tuple[State, int]:
        return {"w": model["w"] + 1e300}, 1

    with federation(server, 1) as group:
        training = group.run(lambda _: (train,), {"w": np.zeros(3)}, target_num_updates=1, update_precision="INT8")
        assert group.actor.download_model(training.model_id)["w"].tolist() == [1e300] * 3
    assert [record for record in caplog.records if "sent in full: I8 cannot hold" in record.getMessage()]


def test_an_upload_that_was_rounded_at_random_goes_on_behind_a_kill(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, sent, killed = 4_000_000, [], []
    steps = np.linspace(-1, 1, count, dtype=np.float32)

    def progress(done: int, total: int) -> None:
        sent.append(done)
        if not killed and done >= total // 2:
            files = server.data_dir / "uploads"
            until(lambda: sum(path.stat().st_size for path in files.glob("*/*")) >= 2 * CHUNK)
            killed.append(len(sent))
            server.kill()
            server.start()

    def transfer_log(runner: RoundRunner, activity: str) -> Any:
        return progress if activity == "uploading" else None

    monkeypatch.setattr(RoundRunner, "_transfer_log", transfer_log)
    with federation(server, 1) as group:
        learned = _run_int8(group, count, steps)
    # It went on where it was, and the file as a whole had the declared digest.
    assert sent[killed[0]] > 2 * CHUNK
    assert np.abs(learned - steps).max() < 1.0001 / 127
    assert not np.array_equal(learned, steps)


def _run_int8(group: Federation, count: int, steps: np.ndarray) -> np.ndarray:
    training = group.run(
        lambda _: (lambda model, round_: ({"w": model["w"] + steps}, 1),),
        {"w": np.zeros(count, np.float32)},
        target_num_updates=1,
        update_precision="INT8",
        stochastic_rounding=True,
    )
    assert training.state == TRAINING_STATE_COMPLETED
    learned: np.ndarray = group.actor.download_model(training.model_id)["w"]
    return learned
