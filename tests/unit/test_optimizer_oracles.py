"""Server optimizers over several rounds, compared with their paper in NumPy, and with torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedround_server.domain.aggregation import Aggregation
from unit.aggregating import Rounds, Sent, stage
from unit.oracles import SIZE, check, walk, weighted_mean


def moments(
    deltas: Sequence[np.ndarray], kind: str, rate: float, beta1: float, beta2: float, tau: float, *, corrected: bool
) -> list[np.ndarray]:
    """Reddi et al., algorithm 2."""
    mean, variance, steps = np.zeros(SIZE), np.full(SIZE, tau**2), []
    for number, delta in enumerate(deltas, 1):
        mean = beta1 * mean + (1 - beta1) * delta
        square = delta * delta
        if kind == "adagrad":
            variance = variance + square
        elif kind == "yogi":
            variance = variance - (1 - beta2) * square * np.sign(variance - square)
        else:
            variance = beta2 * variance + (1 - beta2) * square
        first, second = (1 - beta1**number, 1 - beta2**number) if corrected else (1, 1)
        steps.append(rate * (mean / first) / (np.sqrt(variance / second) + tau))
    return steps


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adagrad": {"learning_rate": 0.2, "beta1": 0.3, "tau": 1e-2},
    "adam": {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.95, "tau": 1e-3},
    "adam corrected": {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.95, "tau": 1e-3, "bias_correction": True},
    "yogi": {"learning_rate": 0.05, "beta1": 0.9, "beta2": 0.99, "tau": 1e-2},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adaptive_optimizers_over_rounds(tmp_path: Path, name: str, record_property: Any) -> None:
    options = OPTIMIZERS[name]
    kind = name.split()[0]
    optimizer = stage("server_optimizer", kind, **options)
    versions, differences, updates = walk(
        tmp_path, Aggregation(stage("algorithm", "fed_avg"), server_optimizer=optimizer), 9
    )
    deltas = [weighted_mean(one, sent) for one, sent in zip(differences, updates, strict=True)]
    expected = moments(
        deltas,
        kind,
        options["learning_rate"],
        options["beta1"],
        options.get("beta2", 0),
        options["tau"],
        corrected="bias_correction" in options,
    )
    check(name, np.diff(versions, axis=0), np.array(expected), record_property)


def torch_walk(optimizer: Any, weight: torch.Tensor, deltas: Sequence[np.ndarray]) -> np.ndarray:
    versions = []
    for delta in deltas:
        weight.grad = torch.tensor(-delta)
        optimizer.step()
        versions.append(weight.detach().numpy().copy())
    return np.array(versions)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_optimizers_are_those_of_torch_where_the_definitions_are_equal(
    tmp_path: Path, name: str, record_property: Any
) -> None:
    # torch adds eps to the root as tau is added here, and starts v at 0: tau squared is next to nothing.
    tau = 1e-12
    options: dict[str, Any] = {
        "sgd": {"learning_rate": 0.7, "momentum": 0.9},
        "adagrad": {"learning_rate": 0.2, "tau": tau},
        "adam": {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.95, "tau": tau, "bias_correction": True},
    }[name]
    optimizer = stage("server_optimizer", name, **options)
    versions, differences, updates = walk(
        tmp_path, Aggregation(stage("algorithm", "fed_avg"), server_optimizer=optimizer), 10
    )
    deltas = [weighted_mean(one, sent) for one, sent in zip(differences, updates, strict=True)]
    weight = torch.nn.Parameter(torch.tensor(versions[0]))
    theirs: Any = {
        "sgd": lambda: torch.optim.SGD([weight], lr=0.7, momentum=0.9),
        "adagrad": lambda: torch.optim.Adagrad([weight], lr=0.2, eps=tau, initial_accumulator_value=tau**2),
        "adam": lambda: torch.optim.Adam([weight], lr=0.1, betas=(0.8, 0.95), eps=tau),
    }[name]()
    check(f"torch {name}", versions[1:], torch_walk(theirs, weight, deltas), record_property)


def test_momentum_of_float32_models_is_kept_in_float32(tmp_path: Path) -> None:
    training = Rounds(
        tmp_path,
        Aggregation(stage("algorithm", "fed_avg"), server_optimizer=stage("server_optimizer", "sgd", momentum=0.5)),
    )
    model = {"w": torch.zeros(3)}
    momentum = np.zeros(3, np.float32)
    for number in range(4):
        update = {"w": model["w"] + torch.tensor([0.1, 1.0, -3.3]) * (number + 1)}
        delta = update["w"].double().numpy() - model["w"].double().numpy()
        new = 0.5 * momentum.astype(np.float64) + delta
        expected = (model["w"].double().numpy() + new).astype(np.float32)
        model = training.aggregate(model, [Sent(update)])
        momentum = new.astype(np.float32)
        assert model["w"].numpy().tolist() == expected.tolist()
        assert training.slot("sgd/v")["w"].numpy().tolist() == momentum.tolist()
