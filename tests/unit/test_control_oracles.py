"""SCAFFOLD and FedDyn, server and participants, compared with their papers in NumPy over rounds with a part of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedround_client.round_control import CONTROL, Control, FedDynControl, LocalTraining, ScaffoldControl
from fedround_client.safetensors_header import TensorInfo
from fedround_client.safetensors_stream import TensorSource
from fedround_client.tensors import array_sources
from fedround_server.aggregators.fed_dyn import FedDyn
from fedround_server.aggregators.scaffold import Scaffold
from fedround_server.aggregators.server_optimizer import Sgd
from fedround_server.domain.aggregation import Aggregation
from unit.aggregating import Rounds, Sent
from unit.oracles import check

Vector = np.ndarray
SIZE, CLIENTS, ROUNDS, STEPS, RATE = 40, 6, 5, 4, 0.05
COHORTS = [[0, 1, 2], [3, 4], [5, 0, 1, 2, 3, 4], [2], [1, 5, 0]]
INFO = {"w": TensorInfo("w", "F64", (SIZE,))}


class Problem:
    """Participants with least squares of their own."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.start = rng.standard_normal(SIZE)
        self._x = rng.standard_normal((CLIENTS, 20, SIZE)) * rng.uniform(0.2, 1, (CLIENTS, 1, SIZE))
        self._y = rng.standard_normal((CLIENTS, 20))

    def gradient(self, client: int, w: Vector) -> Vector:
        return self._x[client].T @ (self._x[client] @ w - self._y[client]) / 20


def scaffold(problem: Problem, rate: float, momentum: float = 0.0) -> list[Vector]:
    """Karimireddy et al., algorithm 1, option II."""
    x, c, own = problem.start, np.zeros(SIZE), np.zeros((CLIENTS, SIZE))
    made, v = [], np.zeros(SIZE)
    for cohort in COHORTS:
        moved, changed = [], []
        for i in cohort:
            y = x
            for _ in range(STEPS):
                y = y - RATE * (problem.gradient(i, y) - own[i] + c)
            renewed = own[i] - c + (x - y) / (STEPS * RATE)
            moved.append(y - x)
            changed.append(renewed - own[i])
            own[i] = renewed
        v = momentum * v + rate * np.mean(moved, axis=0)
        x = x + v
        c = c + len(cohort) / CLIENTS * np.mean(changed, axis=0)
        made.append(x)
    return made


def dynamic(problem: Problem, alpha: float) -> list[Vector]:
    """Acar et al., algorithm 1, with gradient steps in place of the exact local minimum."""
    theta, h, own = problem.start, np.zeros(SIZE), np.zeros((CLIENTS, SIZE))
    made = []
    for cohort in COHORTS:
        local = []
        for k in cohort:
            w = theta
            for _ in range(STEPS):
                w = w - RATE * (problem.gradient(k, w) - own[k] + alpha * (w - theta))
            own[k] = own[k] - alpha * (w - theta)
            local.append(w)
        h = h - alpha / CLIENTS * sum(w - theta for w in local)
        theta = np.mean(local, axis=0) - h / alpha
        made.append(theta)
    return made


def numbers(source: TensorSource) -> Vector:
    """The numbers of a tensor in float64."""
    return np.frombuffer(b"".join(source.pieces(0)), np.float64)


def run(folder: Path, problem: Problem, aggregation: Aggregation) -> list[Vector]:
    """The same with the engine of the server and the control variates of the SDK."""
    rule = aggregation.rule
    training = Rounds(folder, aggregation, population=CLIENTS)
    model, made, own = problem.start, [], [{"w": np.zeros(SIZE)} for _ in range(CLIENTS)]
    for number, cohort in enumerate(COHORTS):
        sent = []
        for client in cohort:
            start = {"w": model.copy()}
            if isinstance(rule, FedDyn):
                control: Control = FedDynControl(INFO, own[client], lambda start=start: start, rule.alpha)
            else:
                server = {"w": training.slot("scaffold/c")["w"].numpy() if number else np.zeros(SIZE)}
                control = ScaffoldControl(INFO, own[client], lambda start=start: start, server)
            w = model
            for _ in range(STEPS):
                w = w - RATE * control.correct({"w": problem.gradient(client, w)}, {"w": w})["w"]
            change = control.change(
                {one.info.name: one for one in array_sources({"w": w})}, LocalTraining(client + 1, STEPS, RATE)
            )
            changes = {one.info.name.removeprefix(CONTROL): torch.tensor(numbers(one)) for one in change.sent}
            sent.append(Sent({"w": torch.tensor(w)}, client + 1, f"site {client}", control=changes or None))
            own[client] = {one.info.name: numbers(one) for one in change.own}
        # An update without examples has no part.
        sent.append(Sent({"w": torch.full((SIZE,), 9.0, dtype=torch.float64)}, 0, "idle"))
        model = training.aggregate({"w": torch.tensor(model)}, sent)["w"].numpy()
        made.append(model)
    return made


def compare(name: str, found: Sequence[Vector], expected: Sequence[Vector], record: Any) -> None:
    assert np.abs(expected[-1] - expected[0]).max() > 1e-2
    check(name, np.array(found), np.array(expected), record)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_scaffold(tmp_path: Path, rate: float, record_property: Any) -> None:
    problem = Problem()
    found = run(tmp_path, problem, Aggregation(Scaffold(rate)))
    compare(f"scaffold {rate}", found, scaffold(problem, rate), record_property)


def test_scaffold_with_momentum_on_the_server(tmp_path: Path, record_property: Any) -> None:
    problem = Problem()
    found = run(tmp_path, problem, Aggregation(Scaffold(), server_optimizer=Sgd(1.0, 0.9)))
    compare("scaffold with momentum", found, scaffold(problem, 1.0, 0.9), record_property)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_fed_dyn(tmp_path: Path, alpha: float, record_property: Any) -> None:
    problem = Problem()
    found = run(tmp_path, problem, Aggregation(FedDyn(alpha)))
    compare(f"fed_dyn {alpha}", found, dynamic(problem, alpha), record_property)
