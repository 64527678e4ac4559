"""Aggregations with the SDK against a real server: what participants send for them, and their stages together."""

from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import federation, plus_one
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED, Training
from servers import Server

MODEL = {"w": np.zeros(2, np.float32)}


def adding(value: float, **inputs: Any) -> Any:
    """A train function that adds a value to the model's."""
    return lambda model, _: fr.Update({"w": model["w"] + np.float32(value)}, 1, **inputs)


def weights(group: Any, training: Training) -> list[float]:
    assert training.state == TRAINING_STATE_COMPLETED
    return list(group.actor.download_model(training.model_id)["w"])


def test_fed_nova_normalizes_by_the_steps_of_each(server: Server) -> None:
    with federation(server, 2) as group:
        # Each step adds 1 at one, and 0.25 at the other.
        functions = [(adding(2, local_steps=2),), (adding(1, local_steps=4),)]
        training = group.run(functions.__getitem__, MODEL, target_num_updates=1, aggregation=fr.FedNova())
        assert weights(group, training) == pytest.approx([3 * (1 + 0.25) / 2] * 2)


def test_the_loss_for_q_fed_avg_comes_from_the_evaluate_function(server: Server) -> None:
    with federation(server, 2) as group:

        def evaluate(model: Any, _: fr.Round) -> tuple[dict[str, float], int]:
            assert model["w"].tolist() == [0, 0]
            return {"loss": 3.0}, 1

        functions = [(adding(1), evaluate), (adding(1, initial_loss=1.0),)]
        training = group.run(functions.__getitem__, MODEL, target_num_updates=1, aggregation=fr.QFedAvg(q=1))
        # sum of L F d over sum of q L^2 |d|^2 + L F, where |d|^2 is 2.
        assert weights(group, training) == pytest.approx([(3 + 1) / (2 + 3 + 2 + 1)] * 2)


def test_stages_work_together(server: Server) -> None:
    with federation(server, 3) as group:
        stages = fr.FedAvgM(0.5, momentum=0.5, aggregation=fr.Median(), clipping=fr.FixedClipping(norm=100))
        functions = [(adding(1),), (adding(2),), (adding(1e6),)]
        training = group.run(functions.__getitem__, MODEL, target_num_updates=2, aggregation=stages)
        # v is 2, then 0.5 * 2 + 2.
        assert weights(group, training) == pytest.approx([0.5 * 2 + 0.5 * 3] * 2)
        told = training.spec.aggregation
        assert told.WhichOneof("algorithm") == "median"
        assert told.server_optimizer.sgd == fr.Sgd(learning_rate=0.5, momentum=0.5)


def test_what_does_not_go_together_is_an_error_of_its_own(server: Server) -> None:
    with federation(server, 1) as group:
        mixed = fr.aggregate(fr.FedNova(), mixing=fr.Bucketing())
        with pytest.raises(fr.AggregationIncompatible, match="does not go with fed_nova"):
            group.run(lambda _: (plus_one,), MODEL, target_num_updates=1, aggregation=mixed)
