"""How far an update may be from the model that its participant started from, by raw calls."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from calls import Person, fails_with, kinds, model_file

# Nine floating elements, each as far as that: three times it.
FAR, NEAR = model_file(1.001), model_file(1)


def begin(actor: Person, clients: list[Person], **spec: Any) -> Any:
    made = actor.create(client_ids=[client.user_id for client in clients], max_update_norm=3, **spec)
    assert made.spec.max_update_norm == 3
    return actor.start(made.training_id)


def test_an_update_over_the_bound_is_rejected_and_one_at_it_counts(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1])
    events = actor.subscribe(training.training_id)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "3.003 away", "allows 3:") as call:
        clients[0].submit(training.training_id, FAR)
    assert float(call.details.metadata["norm"]) == pytest.approx(3.003)
    assert call.details.metadata["limit"] == "3.0"
    assert actor.get(training.training_id).updates_arrived == 0
    clients[0].submit(training.training_id, NEAR)
    assert kinds(list(events))[-1] == "training_finished"


def test_the_distance_is_from_the_rounds_own_version(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], target_num_updates=2)
    events = actor.subscribe(training.training_id)
    clients[0].submit(training.training_id, NEAR)
    assert next(event for event in events if event.HasField("round_started") and event.round_started.round == 1)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "6 away"):
        clients[0].submit(training.training_id, model_file(3), 1)
    clients[0].submit(training.training_id, model_file(2), 1)
    assert kinds(list(events))[-1] == "training_finished"


def test_in_a_chain_the_distance_is_from_the_assigned_model(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], aggregation={"fed_dc": {"aggregation_period": 2}})
    events = actor.subscribe(training.training_id)
    clients[0].submit(training.training_id, model_file(1))
    clients[1].submit(training.training_id, model_file(-1))
    assert next(event for event in events if event.HasField("round_started") and event.round_started.assigned)
    # Each is assigned the other's: to one of them, what it sent itself is far.
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "6 away"):
        clients[0].submit(training.training_id, model_file(1), 1)
    clients[0].submit(training.training_id, model_file(-2), 1)
    clients[1].submit(training.training_id, model_file(2), 1)
    assert kinds(list(events))[-1] == "training_finished"


def test_in_a_swag_round_it_bounds_the_means(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], uncertainty={"swag": {"rank": 1}})
    events = actor.subscribe(training.training_id)
    clients[0].submit(training.training_id, NEAR)
    assert next(event for event in events if event.HasField("round_started") and event.round_started.round == 1)

    def moments(mean: float) -> bytes:
        shapes = {"weight": (2, 3), "bias": (3,)}
        tensors = {f"mean/{name}": np.full(shape, mean, np.float64) for name, shape in shapes.items()}
        tensors |= {f"second/{name}": np.full(shape, 100.0) for name, shape in shapes.items()}
        tensors |= {f"deviation/0/{name}": np.full(shape, 50, np.float32) for name, shape in shapes.items()}
        return save(tensors)

    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "6 away"):
        clients[0].submit(training.training_id, moments(3), 1)
    clients[0].submit(training.training_id, moments(2), 1)
    assert kinds(list(events))[-1] == "training_finished"
