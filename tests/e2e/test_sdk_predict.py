"""Predictions against a real server, with the architectures of networks.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedround_client as fr
from e2e.federation import Federation, federation
from fedround_client.command import app
from servers import Server

INPUTS = np.float32([[1, 2], [3, -1], [0, 0]])
RNG = np.random.default_rng(3)
CLASSIFIER = {
    "hidden.weight": RNG.normal(size=(8, 2)).astype(np.float32),
    "hidden.bias": RNG.normal(size=8).astype(np.float32),
    "out.weight": RNG.normal(size=(3, 8)).astype(np.float32),
    "out.bias": RNG.normal(size=3).astype(np.float32),
}
PIXELS = RNG.integers(0, 256, size=(5, 2), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--architecture", "line=e2e.networks:line", "--architecture", "classifier=e2e.networks:classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=":")
        with Server(tmp_path_factory.mktemp("server") / "data", options=options) as running:
            yield running


@pytest.fixture
def group(server: Server) -> Iterator[Federation]:
    with federation(server, 1) as made:
        yield made


def a_line(slope: float, bias: float) -> dict[str, np.ndarray]:
    return {"weight": np.float32([[slope, 1]]), "bias": np.float32([bias])}


def along(line: dict[str, np.ndarray]) -> np.ndarray:
    return INPUTS @ line["weight"].T + line["bias"]


def test_one_pass_is_what_the_network_says(group: Federation) -> None:
    model = group.actor.upload_model(a_line(2, 0.5), architecture="line")
    found = group.actor.predict(model.model_id, INPUTS)
    np.testing.assert_array_equal(found.mean, along(a_line(2, 0.5)))
    assert (found.model_id, found.model_version, found.samples) == (model.model_id, 0, 1)
    assert (found.variance, found.predictive_entropy) == (None, None)
    assert found.uncertainty.WhichOneof("method") == "none"

    hidden = np.maximum(PIXELS / np.float32(255) @ CLASSIFIER["hidden.weight"].T + CLASSIFIER["hidden.bias"], 0)
    logits = hidden @ CLASSIFIER["out.weight"].T + CLASSIFIER["out.bias"]
    unnamed = group.actor.upload_model(CLASSIFIER)
    found = group.actor.predict(unnamed.model_id, PIXELS, architecture="classifier")
    np.testing.assert_allclose(found.mean, logits, rtol=1e-5)


def test_monte_carlo_dropout_is_reproducible_and_its_entropies_add_up(group: Federation) -> None:
    model_id = group.actor.upload_model(CLASSIFIER, architecture="classifier").model_id

    def predict(seed: int | None) -> fr.Prediction:
        return group.actor.predict(model_id, PIXELS, uncertainty=fr.McDropout(samples=20, softmax=True), seed=seed)

    first, again, other = predict(7), predict(7), predict(8)
    for name in ("mean", "variance", "std", "predictive_entropy", "expected_entropy", "mutual_information"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert not np.array_equal(predict(None).mean, predict(None).mean)
    assert first.samples == 20
    np.testing.assert_allclose(first.mean.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(first.std**2, first.variance, rtol=1e-5)
    total = first.expected_entropy + first.mutual_information
    np.testing.assert_allclose(first.predictive_entropy, total, rtol=1e-5)
    assert (first.mutual_information > 0).all()


def test_an_ensemble_of_versions_and_models_votes(group: Federation) -> None:
    def train(model: dict[str, Any], round_: fr.Round) -> tuple[dict[str, Any], int]:
        return a_line(round_.number + 1, 0), 1

    last = group.run(lambda number: (train,), a_line(0, 0), architecture="line", target_num_updates=3)
    other = group.actor.upload_model(a_line(10, 5), architecture="line")
    votes = [a_line(3, 0), a_line(2, 0), a_line(10, 5)]
    choice = fr.Ensemble(last_versions=2, members=[fr.EnsembleMember(model_id=other.model_id)])
    found = group.actor.predict(last.model_id, INPUTS, uncertainty=choice)
    outputs = np.stack([along(vote) for vote in votes])
    np.testing.assert_allclose(found.mean, outputs.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, outputs.var(0), rtol=1e-5)
    assert (found.samples, found.model_version) == (3, 3)
    older = group.actor.predict(last.model_id, INPUTS, version=1)
    np.testing.assert_array_equal(older.mean, along(a_line(1, 0)))


def test_a_posterior_is_drawn_from_as_its_training_says(group: Federation) -> None:
    slopes = (1.0, 3.0)

    def swag(model: dict[str, Any], round_: fr.Round) -> tuple[dict[str, Any], int]:
        moments = fr.Moments(round_.swag_rank)
        for slope in slopes:
            moments.add(a_line(slope, 0))
        return moments.update(), 1

    training = group.run(
        lambda number: (lambda model, round_: (model, 1), None, swag),
        a_line(0, 0),
        architecture="line",
        target_num_updates=1,
        uncertainty=fr.Swag(samples=1000),
    )
    found = group.actor.predict(training.model_id, INPUTS, seed=1)
    assert (found.samples, found.uncertainty.WhichOneof("method")) == (1000, "swag")
    # The slope is drawn from N(2, 1), all else is certain.
    np.testing.assert_allclose(found.mean, along(a_line(2, 0)), atol=0.4)
    np.testing.assert_allclose(found.std[:, 0], np.abs(INPUTS[:, 0]), rtol=0.2)
    assert np.array_equal(found.mean, group.actor.predict(training.model_id, INPUTS, seed=1).mean)
    plain = group.actor.predict(training.model_id, INPUTS, uncertainty=fr.NoUncertainty())
    np.testing.assert_array_equal(plain.mean, along(a_line(0, 0)))
    with group.connect(0) as participant:
        assert np.array_equal(found.mean, participant.predict(training.model_id, INPUTS, seed=1).mean)


def test_inputs_that_do_not_fit_are_reported(group: Federation) -> None:
    actor = group.actor
    line = actor.upload_model(a_line(0, 0), architecture="line").model_id
    unnamed = actor.upload_model(a_line(0, 0)).model_id
    with pytest.raises(fr.ArchitectureUnknown, match="--architecture NAME"):
        actor.predict(unnamed, INPUTS)
    with pytest.raises(fr.PosteriorMissing, match="no SWAG posterior"):
        actor.predict(line, INPUTS, uncertainty=fr.Swag())
    with pytest.raises(fr.PredictionFailed, match="no dropout"):
        actor.predict(line, INPUTS, uncertainty=fr.McDropout())
    with pytest.raises(fr.PredictionFailed, match="does not fit the architecture"):
        actor.predict(line, PIXELS, architecture="classifier")
    with pytest.raises(fr.FieldInvalid, match=r"takes \[N, 2\]"):
        actor.predict(line, np.zeros((1, 3), np.float32))
    with pytest.raises(fr.ModelNotFound), group.connect(0) as unrelated:
        unrelated.predict(line, INPUTS)


def test_the_command_predicts_too(server: Server, group: Federation, tmp_path: Path) -> None:
    model_id = group.actor.upload_model(CLASSIFIER, architecture="classifier").model_id
    np.save(tmp_path / "pixels.npy", PIXELS)
    options = "--uncertainty mc-dropout --samples 20 --softmax --seed 7 --format json"
    line = f"--server {server.address} predict {model_id} {tmp_path / 'pixels.npy'} {options}"
    result = CliRunner().invoke(app, line.split(), env={"FEDROUND_TOKEN": group.actor_token})
    assert result.exit_code == 0, result.output
    expected = group.actor.predict(model_id, PIXELS, uncertainty=fr.McDropout(samples=20, softmax=True), seed=7)
    printed = json.loads(result.stdout)
    np.testing.assert_array_equal(np.float32(printed["mean"]), expected.mean)
    np.testing.assert_array_equal(np.float32(printed["mutual_information"]), expected.mutual_information)
