"""The uncertainty methods, against closed forms and NumPy; statistical bounds hold for the fixed seeds."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedround_server.domain.model import Dtype
from fedround_server.domain.prediction import Array, Prediction
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.jobs import PredictionFault, PredictionJob
from fedround_server.engine.prediction import predict, summarise
from fedround_server.engine.uncertainty.swag import draw
from sizes import IS_LONG
from unit.paths import Paths, at
from unit.safetensors_files import write
from unit.test_moments import gather, make

Tensors = dict[str, np.ndarray]
# The bounds follow from it.
DRAWS = 20_000 if IS_LONG else 2_000
LINEAR = {"weight": np.array([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]]), "bias": np.array([0.5, -0.5])}
INPUTS = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])


def numbers(found: Array) -> np.ndarray:
    return np.frombuffer(found.data, "<f4").reshape(found.shape)


def save(path: Path, tensors: Tensors) -> Path:
    path.write_bytes(write(tensors))
    return path


def run(
    factory: str,
    models: list[Path],
    method: str,
    options: dict[str, Any],
    *,
    posterior: Path | None = None,
    seed: int | None = 1,
    inputs: np.ndarray = INPUTS,
) -> Prediction:
    given = Array(Dtype.F64, inputs.shape, inputs.tobytes())
    around = None if posterior is None else at(posterior)
    job = PredictionJob(f"unit.architectures:{factory}", tuple(map(at, models)), around, given, method, options, seed)
    return predict(Paths(models[0].parent), job)


def sample(posterior: Path, names: list[str], draws: int = DRAWS) -> np.ndarray:
    """Draws weights, shape (draws, weights)."""
    generator = torch.Generator().manual_seed(1)
    with TensorFile(posterior) as file:
        drawn = (draw(file, names, generator) for _ in range(draws))
        return np.array([np.concatenate([one[name].numpy().ravel() for name in names]) for one in drawn])


def check_normal(samples: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Samples have these moments, within five standard errors of those."""
    count, variance = len(samples), np.diag(covariance)
    assert (np.abs(samples.mean(0) - mean) <= 5 * np.sqrt(variance / count)).all()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    assert (np.abs(np.cov(samples.T) - covariance) <= 5 * error).all()
    # The draws are independent.
    centered = samples - mean
    for before, after in zip(centered[:-1].T, centered[1:].T, strict=True):
        assert abs(before @ after) <= 5 * np.sqrt((before @ before) * (after @ after) / count)


@pytest.mark.attack
def test_a_diagonal_posterior_is_sampled(tmp_path: Path) -> None:
    mean, sigma = np.array([[3.0, -1.0], [0.0, 100.0]]), np.array([[0.5, 2.0], [1e-3, 7.0]])
    bias = np.array([1.0])
    posterior = save(
        tmp_path / "posterior",
        {"mean/w": mean, "second/w": mean**2 + sigma**2, "mean/b": bias, "second/b": bias**2 + 9},
    )
    expected = np.array([1.0, *mean.ravel()])
    check_normal(sample(posterior, ["b", "w"]), expected, np.diag([9.0, *sigma.ravel() ** 2]))


@pytest.mark.attack
def test_a_low_rank_posterior_is_sampled(tmp_path: Path) -> None:
    """Half of the diagonal variance, and half of the deviations' covariance, across tensors too."""
    rng = np.random.default_rng(1)
    mean, sigma = rng.standard_normal(5), np.array([0.5, 1.0, 2.0, 0.0, 1.0])
    deviations = rng.standard_normal((3, 5)).astype(np.float32)
    tensors = {}
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 5))):
        tensors |= {f"mean/{name}": mean[part], f"second/{name}": (mean**2 + sigma**2)[part]}
        tensors |= {f"deviation/{column}/{name}": deviations[column][part] for column in range(3)}
    inside = deviations.astype(np.float64)
    covariance = np.diag(sigma**2) / 2 + inside.T @ inside / 2
    check_normal(sample(save(tmp_path / "posterior", tensors), ["a", "b"]), mean, covariance)


@pytest.mark.parametrize("excess", [0.0, 1e-3, 50.0])
def test_a_variance_that_rounding_made_negative_is_none(tmp_path: Path, excess: float) -> None:
    mean = np.array([7.0, -7.0])
    posterior = save(tmp_path / "posterior", {"mean/w": mean, "second/w": mean**2 - excess})
    with TensorFile(posterior) as file:
        assert draw(file, ["w"], torch.Generator())["w"].tolist() == mean.tolist()


@pytest.mark.attack
def test_sgd_on_a_quadratic_gives_its_stationary_distribution(tmp_path: Path) -> None:
    """Around the minimum of a quadratic, SGD with noise of variance c is an AR(1) process in each direction.

    With rate r and curvature a its variance is r^2 c / (1 - (1 - r a)^2) (Mandt et al., JMLR 2017).
    """
    rng = np.random.default_rng(2)
    rate, noise, curvature, minimum = 0.3, 2.0, np.array([1.0, 2.0, 0.7]), np.array([1.0, -2.0, 30.0])
    variance = rate**2 * noise / (1 - (1 - rate * curvature) ** 2)
    participants, steps = 4, 20_000 if IS_LONG else 5_000
    iterates = np.empty((participants, steps, 3))
    weights = minimum + np.sqrt(variance) * rng.standard_normal((participants, 3))
    for step in range(steps):
        gradient = curvature * (weights - minimum) + np.sqrt(noise) * rng.standard_normal((participants, 3))
        weights = weights - rate * gradient
        iterates[:, step] = weights
    posterior = make(tmp_path, [gather({"w": run}) for run in iterates], [10, 20, 30, 10])
    samples = sample(posterior, ["w"])
    # Steps of which one remembers rho of the one before count like (1 - rho) / (1 + rho) of independent ones.
    rho = (1 - rate * curvature).max()
    effective = participants * steps * (1 - rho) / (1 + rho) / 2
    assert (np.abs(samples.mean(0) - minimum) <= 5 * np.sqrt(variance * (1 / effective + 1 / DRAWS))).all()
    assert (np.abs(samples.var(0) / variance - 1) <= 5 * np.sqrt(2 / effective + 2 / DRAWS)).all()


@pytest.mark.attack
def test_a_known_gaussian_is_found_with_its_correlations(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    factor = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.5, 0.5, 2.0]])
    covariance, center = factor @ factor.T, np.array([5.0, 0.0, -5.0])
    participants, rank, draws = (25, 20, 1000) if IS_LONG else (10, 20, 250)
    runs = center + rng.standard_normal((participants, 100, 3)) @ factor.T
    posterior = make(tmp_path, [gather({"w": run}, rank) for run in runs], [1] * participants)
    samples = sample(posterior, ["w"], draws)
    scale = np.sqrt(np.diag(covariance))
    assert (np.abs(samples.mean(0) - center) <= 5 * scale * np.sqrt(1 / draws + 1 / (participants * 100))).all()
    # As many deviations estimate the covariance, of which half is without correlations.
    expected = np.diag(scale**2) / 2 + covariance / 2
    error = np.sqrt(2 / draws + 2 / (participants * rank))
    assert (np.abs(np.cov(samples.T) - expected) <= 3 * error * np.outer(scale, scale)).all()


def test_swag_leaves_batch_statistics_alone(tmp_path: Path) -> None:
    model = {f"0.{name}": tensor for name, tensor in LINEAR.items()} | {
        "2.weight": np.array([2.0, 3.0]),
        "2.bias": np.array([1.0, 0.0]),
        "2.running_mean": np.array([0.5, -1.0]),
        "2.running_var": np.array([4.0, 9.0]),
        "2.num_batches_tracked": np.array(7),
    }
    # The posterior is certain, and elsewhere than the model; it has moments of the statistics too.
    moved = {name: tensor + 1.0 for name, tensor in model.items() if tensor.dtype == np.float64}
    moments = {f"mean/{name}": tensor for name, tensor in moved.items()}
    moments |= {f"second/{name}": tensor**2 for name, tensor in moved.items()}
    posterior = save(tmp_path / "posterior", moments)
    found = run("batch_norm", [save(tmp_path / "model", model)], "swag", {"samples": 3}, posterior=posterior)
    linear = INPUTS @ moved["0.weight"].T + moved["0.bias"]
    normal = (linear - model["2.running_mean"]) / np.sqrt(model["2.running_var"] + 1e-5)
    np.testing.assert_allclose(numbers(found.mean), normal * moved["2.weight"] + moved["2.bias"], rtol=1e-6)
    assert found.spread is not None
    assert not numbers(found.spread[0]).any()


def test_a_posterior_of_another_model_is_rejected(tmp_path: Path) -> None:
    posterior = save(tmp_path / "posterior", {"mean/weight": LINEAR["weight"], "second/weight": LINEAR["weight"] ** 2})
    with pytest.raises(PredictionFault, match="lacks 'bias'"):
        run("linear", [save(tmp_path / "model", LINEAR)], "swag", {"samples": 1}, posterior=posterior)


@pytest.mark.attack
def test_mc_dropout_of_a_linear_model_has_the_closed_form(tmp_path: Path) -> None:
    model = {f"1.{name}": tensor for name, tensor in LINEAR.items()}
    samples, rate = 20_000 if IS_LONG else 5_000, 0.25
    found = run("dropout", [save(tmp_path / "model", model)], "mc_dropout", {"samples": samples})
    products = INPUTS[:, None, :] * LINEAR["weight"]
    mean = products.sum(-1) + LINEAR["bias"]
    variance = (products**2).sum(-1) * rate / (1 - rate)
    # All masks with their probabilities: how far a sample's mean and variance may be from those.
    masks = np.array(list(itertools.product([0, 1], repeat=3)))
    chances = np.prod(np.where(masks == 1, 1 - rate, rate), axis=1)
    outcomes = (products[:, :, None, :] * masks / (1 - rate)).sum(-1) + LINEAR["bias"][:, None]
    np.testing.assert_allclose(outcomes @ chances, mean)
    centered = outcomes - mean[:, :, None]
    np.testing.assert_allclose(centered**2 @ chances, variance)
    fourth = centered**4 @ chances
    assert found.spread is not None
    assert (np.abs(numbers(found.mean) - mean) <= 5 * np.sqrt(variance / samples)).all()
    assert (np.abs(numbers(found.spread[0]) - variance) <= 5 * np.sqrt((fourth - variance**2) / samples)).all()
    assert found.samples == samples


def test_mc_dropout_wakes_nothing_but_dropout(tmp_path: Path) -> None:
    model = {f"0.{name}": tensor for name, tensor in LINEAR.items()} | {
        "2.weight": np.ones(2),
        "2.bias": np.zeros(2),
        "2.running_mean": np.zeros(2),
        "2.running_var": np.ones(2) - 1e-5,
        "2.num_batches_tracked": np.array(7),
    }
    # Awake, batch normalisation rejects a single input, and would make zero of it.
    found = run("batch_norm", [save(tmp_path / "model", model)], "mc_dropout", {"samples": 200}, inputs=INPUTS[:1])
    whole = INPUTS[:1] @ LINEAR["weight"].T + LINEAR["bias"]
    # Each output is either dropped or doubled.
    assert found.spread is not None
    mean, variance = numbers(found.mean), numbers(found.spread[0])
    np.testing.assert_allclose(variance, mean * (2 * whole - mean), rtol=1e-5)
    assert (np.abs(mean / whole - 1) <= 5 / np.sqrt(200)).all()


def test_dropout_without_effect_is_none(tmp_path: Path) -> None:
    model = save(tmp_path / "model", {f"1.{name}": tensor for name, tensor in LINEAR.items()})
    with pytest.raises(PredictionFault, match="no dropout"):
        run("without_effect", [model], "mc_dropout", {"samples": 2})


@pytest.mark.parametrize("softmax", [False, True])
def test_an_ensemble_is_numpys_mean_over_its_members(tmp_path: Path, softmax: bool) -> None:
    rng = np.random.default_rng(4)
    members = [{name: rng.standard_normal(tensor.shape) for name, tensor in LINEAR.items()} for _ in range(5)]
    files = [save(tmp_path / str(number), member) for number, member in enumerate(members)]
    found = run("linear", files, "ensemble", {"softmax": softmax})
    check_summary(found, np.array([INPUTS @ member["weight"].T + member["bias"] for member in members]), softmax)


@given(
    arrays(np.float64, st.tuples(*[st.integers(1, 6)] * 3), elements=st.floats(-1000, 1000)),
    st.booleans(),
)
@settings(deadline=None)
def test_summaries_are_numpys(passes: np.ndarray, softmax: bool) -> None:
    check_summary(summarise(iter(torch.from_numpy(passes.copy())), softmax=softmax), passes, softmax)


@given(arrays(np.float64, (4, 3, 5), elements=st.floats(-1e4, 1e4)))
@settings(deadline=None)
def test_entropies_add_up(logits: np.ndarray) -> None:
    found = summarise(iter(torch.from_numpy(logits.copy())), softmax=True).entropies
    assert found is not None
    predictive, expected, mutual = (numbers(one).astype(np.float64) for one in found)
    # Each of the three is rounded to float32 by itself.
    rounding = 3 * np.finfo(np.float32).eps * np.log(5)
    assert (np.abs(predictive - expected - mutual) <= rounding).all()
    assert (mutual >= -rounding).all()
    assert (expected >= 0).all()
    assert (predictive <= np.log(5) + rounding).all()


def test_certain_and_uncertain_votes() -> None:
    sure = torch.tensor([[1000.0, 0.0]])
    cases = {
        "all sure": ([sure, sure], 0, 0),
        "sure of different things": ([sure, -sure], np.log(2), np.log(2)),
        "all unsure": ([sure * 0, sure * 0], np.log(2), 0),
    }
    for passes, predictive, mutual in cases.values():
        found = summarise(iter(passes), softmax=True).entropies
        assert found is not None
        np.testing.assert_allclose(numbers(found[0]), predictive, rtol=1e-6)
        np.testing.assert_allclose(numbers(found[2]), mutual, rtol=1e-6)


def check_summary(found: Prediction, passes: np.ndarray, softmax: bool) -> None:
    if softmax:
        shifted = np.exp(passes - passes.max(-1, keepdims=True))
        passes = shifted / shifted.sum(-1, keepdims=True)
    tolerance = {"rtol": 1e-6, "atol": 1e-7 if softmax else 1e-5}
    np.testing.assert_allclose(numbers(found.mean), passes.mean(0), **tolerance)
    assert found.samples == len(passes)
    assert (found.spread is None) == (len(passes) == 1)
    if found.spread is not None:
        np.testing.assert_allclose(numbers(found.spread[0]), passes.var(0), **tolerance)
        np.testing.assert_allclose(numbers(found.spread[1]), passes.std(0), rtol=1e-6, atol=1e-5)
    assert (found.entropies is None) != softmax
    if found.entropies is not None:
        expected = entropy(passes).mean(0)
        np.testing.assert_allclose(numbers(found.entropies[0]), entropy(passes.mean(0)), **tolerance)
        np.testing.assert_allclose(numbers(found.entropies[1]), expected, **tolerance)
        np.testing.assert_allclose(numbers(found.entropies[2]), entropy(passes.mean(0)) - expected, **tolerance)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return -(probabilities * logarithms).sum(-1)


@pytest.mark.parametrize("method", ["swag", "mc_dropout"])
def test_a_seed_makes_a_prediction_reproducible(tmp_path: Path, method: str) -> None:
    model = save(tmp_path / "model", {f"1.{name}": tensor for name, tensor in LINEAR.items()})
    moments = {f"mean/1.{name}": tensor for name, tensor in LINEAR.items()}
    moments |= {f"second/1.{name}": tensor**2 + 1 for name, tensor in LINEAR.items()}
    posterior = save(tmp_path / "posterior", moments)

    def ask(seed: int | None) -> bytes:
        # Whatever was drawn before, by whomever.
        torch.rand(3)
        return run("dropout", [model], method, {"samples": 30}, posterior=posterior, seed=seed).mean.data

    assert ask(1) == ask(1)
    assert ask(2**62) == ask(2**62)
    assert len({ask(seed) for seed in range(10)}) == 10
    assert len({ask(None) for _ in range(10)}) == 10
