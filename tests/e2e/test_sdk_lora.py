"""Trainings of adapters with the SDK against a real server: participants with different ranks."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import fedround_client as fr
from e2e.federation import federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_client.participation import Train
from servers import Server

State = dict[str, Any]
A, B, W = "q.lora_A.default.weight", "q.lora_B.default.weight", "q.base_layer.weight"
RANKS = (1, 2, 4)
SCALING = 2.0
RULES = [fr.LoraStack(scaling=SCALING), fr.LoraSvd(), fr.LoraSvd(rank=4)]


def model() -> State:
    rng = np.random.default_rng(7)
    shapes = {W: (6, 8), A: (4, 8), B: (6, 4)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, B: np.zeros_like(made[B])}


def effect(tensors: State) -> np.ndarray:
    """The weight that the layer computes with."""
    weight, a, b = (np.asarray(tensors[name], np.float64) for name in (W, A, B))
    return np.asarray(weight + SCALING * (b @ a))


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("precision", ["FULL", "FLOAT16"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_participants_of_different_ranks(
    server: Server, rule: Any, framework: Any, precision: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The mean of what participants made of the layer is that of the next version."""
    made: dict[int, list[np.ndarray]] = {}
    seen: dict[int, np.ndarray] = {}

    def training_with(rank: int) -> Train:
        def train(whole: State, round_: fr.Round) -> tuple[State, int]:
            seen[round_.number] = effect(whole)
            part = fr.lora.truncate(whole, rank)
            rng = np.random.default_rng(rank + 10 * round_.number)
            # Towards a common target of rank 1, so that rank 4 is enough for the mean of the products.
            target = np.outer(rng.standard_normal(6), rng.standard_normal(8)).astype(np.float32)
            for name in (A, B):
                new = np.zeros(tuple(part[name].shape), np.float32)
                new[0 if name == A else slice(None), ... if name == A else 0] = target[0] if name == A else target[:, 0]
                part[name] = torch.from_numpy(new) if framework == "torch" else new
            made.setdefault(round_.number, []).append(effect(part))
            return part, 5

        return train

    with federation(server, len(RANKS)) as group, caplog.at_level(logging.WARNING):
        training = group.actor.create_training(
            {name: torch.from_numpy(array) for name, array in model().items()} if framework == "torch" else model(),
            name="adapters",
            target_num_updates=2,
            client_ids=group.ids,
            aggregation=rule,
            trainable=["*lora_*"],
            update_precision=precision,
            evaluation="NEVER",
        )
        group.actor.start_training(training.training_id)

        def run(number: int) -> None:
            with group.connect(number) as client:
                client.participate(training_with(RANKS[number]), framework=framework)

        with ThreadPoolExecutor(len(RANKS)) as pool:
            assert list(pool.map(run, range(len(RANKS)))) == [None] * len(RANKS)
        assert group.actor.get_training(training.training_id).state == TRAINING_STATE_COMPLETED
        final = group.actor.download_model(training.model_id, framework="numpy")
    assert {name: array.shape for name, array in final.items()} == {W: (6, 8), A: (4, 8), B: (6, 4)}
    tolerance = 1e-5 if precision == "FULL" else 1e-2
    np.testing.assert_allclose(seen[1], sum(made[0]) / len(RANKS), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(effect(final), sum(made[1]) / len(RANKS), rtol=tolerance, atol=tolerance)
    in_full = [record for record in caplog.records if "is sent in full" in record.getMessage()]
    # Updates of a lower rank have no differences from the model.
    assert bool(in_full) == (precision != "FULL")
