"""Rounds are computed once more, over a real port."""

import math
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from calls import Person, fails_with, model_file, new_id, until
from fedround.v1 import audit_pb2, training_pb2


def replay(person: Person, training_id: str, number: int = 0, without: list[str] | None = None) -> Any:
    request = audit_pb2.ReplayRoundRequest(training_id=training_id, round=number, without_client_ids=without or [])
    return person.audit.ReplayRound(request)


def trained(actor: Person, clients: list[Person], rounds: int = 1, **spec: Any) -> training_pb2.Training:
    made = actor.create(client_ids=[client.user_id for client in clients], target_num_updates=rounds, **spec)
    actor.start(made.training_id)
    for number in range(rounds):
        for weight, client in enumerate(clients, 1):
            client.submit(made.training_id, model_file(weight + number), number, num_examples=weight)
        until(lambda number=number: actor.get(made.training_id).model_version == number + 1)
    return made


@pytest.mark.parametrize(
    "aggregation",
    [
        {},
        {"median": {}},
        {"fed_avg": {}, "server_optimizer": {"adam": {"learning_rate": 0.5}}},
        {"centered_clipping": {"tau": 1.0}, "clipping": {"fixed": {"norm": 2.0}}},
    ],
    ids=str,
)
def test_a_round_is_reproduced_bit_for_bit(actor: Person, clients: list[Person], aggregation: dict[str, Any]) -> None:
    made = trained(actor, clients, rounds=3, aggregation=aggregation)
    for number in range(3):
        found = replay(actor, made.training_id, number)
        assert found.replayed_sha256 == found.recorded_sha256
        assert (found.model_version, found.num_updates, found.distance) == (number + 1, len(clients), 0)


def test_a_round_without_a_participant_is_computed(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients)
    found = replay(actor, made.training_id, without=[clients[0].user_id])
    assert found.num_updates == len(clients) - 1
    assert found.replayed_sha256 != found.recorded_sha256
    tensors = [safetensors.numpy.load(model_file(weight)) for weight in range(1, len(clients) + 1)]

    def mean(first: int) -> dict[str, np.ndarray]:
        weights = range(first, len(clients) + 1)
        total = sum(weights)
        floating = [name for name, tensor in tensors[0].items() if tensor.dtype.kind == "f"]
        return {name: sum(tensors[w - 1][name].astype(np.float64) * w for w in weights) / total for name in floating}

    whole, part = mean(1), mean(2)
    expected = math.sqrt(sum(float(np.square(whole[name] - part[name]).sum()) for name in whole))
    assert found.distance == pytest.approx(expected, rel=1e-5)
    # Nothing was changed.
    assert replay(actor, made.training_id).distance == 0


def test_what_cannot_be_replayed_is_an_error(actor: Person, clients: list[Person], person: Any) -> None:
    made = actor.create(client_ids=[client.user_id for client in clients])
    with fails_with("NOT_FOUND", "ROUND_NOT_FOUND", "no such round"):
        replay(actor, made.training_id)
    actor.start(made.training_id)
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "no version"):
        replay(actor, made.training_id)
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "ACTOR"):
        replay(clients[0], made.training_id)
    with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND", "check the id"):
        replay(person("ACTOR"), made.training_id)
    done = trained(actor, clients)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "without_client_ids"):
        replay(actor, done.training_id, without=[new_id()])
    with fails_with("NOT_FOUND", "ROUND_NOT_FOUND", "no such round"):
        replay(actor, done.training_id, number=1)


def test_a_round_whose_model_was_dropped_is_not_replayed(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients, rounds=3, keep_versions=2)
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "keep_versions"):
        replay(actor, made.training_id, 0)
    found = replay(actor, made.training_id, 2)
    assert found.replayed_sha256 == found.recorded_sha256
