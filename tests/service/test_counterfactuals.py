"""Trainings are computed once more without some participants, over a real port."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from calls import Person, digest, download, fails_with, model_file, new_id, until
from fedround.v1 import audit_pb2, model_pb2, training_pb2

ROUNDS = 3
WEIGHTS = (1, 2, 5)
ADAM = {"learning_rate": 0.5, "beta1": 0.8, "beta2": 0.95, "tau": 0.01}


def draw(number: int, client: int) -> bytes:
    """The update of a client in a round."""
    random = np.random.default_rng([number, client])
    return model_file(weight=random.normal(size=(2, 3)).astype(np.float32), bias=random.normal(size=3))


def trained(actor: Person, clients: Sequence[Person], **spec: Any) -> training_pb2.Training:
    made = actor.create(client_ids=[client.user_id for client in clients], target_num_updates=ROUNDS, **spec)
    actor.start(made.training_id)
    for number in range(ROUNDS):
        for place, client in enumerate(clients):
            client.submit(made.training_id, draw(number, place), number, num_examples=WEIGHTS[place])
        until(lambda number=number: actor.get(made.training_id).model_version == number + 1)
    return made


def replay(
    actor: Person, training_id: str, without: Sequence[Person] = (), name: str = "", request_id: str = ""
) -> list[audit_pb2.ReplayTrainingResponse]:
    request = audit_pb2.ReplayTrainingRequest(
        training_id=training_id,
        without_client_ids=[client.user_id for client in without],
        model_name=name,
        request_id=request_id,
    )
    return list(actor.audit.ReplayTraining(request))


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in ("bias", "weight")])


def versions(person: Person, model_id: str) -> list[np.ndarray]:
    """The floating numbers of all versions of a model."""
    return [
        flat(safetensors.numpy.load(download(person, model_id, version=version)[1])) for version in range(ROUNDS + 1)
    ]


def expected(recorded: Sequence[np.ndarray], places: Sequence[int], adam: dict[str, float] | None) -> list[np.ndarray]:
    """The branch: around its model, each update stands for the model plus its difference from the recorded one."""
    model, branch = recorded[0], [recorded[0]]
    mean, square = np.zeros_like(model), np.full_like(model, 0.0 if adam is None else adam["tau"] ** 2)
    for number in range(ROUNDS):
        differences = [flat(safetensors.numpy.load(draw(number, place))) - recorded[number] for place in places]
        delta = np.average(differences, axis=0, weights=[WEIGHTS[place] for place in places])
        if adam is not None:
            mean = adam["beta1"] * mean + (1 - adam["beta1"]) * delta
            square = adam["beta2"] * square + (1 - adam["beta2"]) * delta**2
            delta = adam["learning_rate"] * mean / (np.sqrt(square) + adam["tau"])
        branch.append(branch[-1] + delta)
    return branch


@pytest.mark.parametrize("adam", [None, ADAM], ids=["fed_avg", "fed_adam"])
@pytest.mark.parametrize("left_out", [[0], [1, 2]], ids=["one", "two"])
def test_the_branch_is_what_numpy_makes_of_the_other_updates(
    actor: Person, clients: list[Person], adam: dict[str, float] | None, left_out: list[int]
) -> None:
    aggregation = {} if adam is None else {"server_optimizer": {"adam": adam}}
    made = trained(actor, clients, aggregation=aggregation)
    recorded = versions(actor, made.model_id)
    *found, last = replay(actor, made.training_id, [clients[place] for place in left_out], "without")
    branch = versions(actor, last.model_id)
    oracle = expected(recorded, [place for place in range(3) if place not in left_out], adam)
    for version, values in enumerate(oracle):
        np.testing.assert_allclose(branch[version], values, rtol=1e-5, atol=1e-5)
    assert [one.exact for one in found] == [True, False, False]
    assert [(one.round, one.model_version, one.num_updates) for one in found] == [
        (number, number + 1, 3 - len(left_out)) for number in range(ROUNDS)
    ]
    for one, mine, theirs in zip(found, branch[1:], recorded[1:], strict=True):
        assert one.distance == pytest.approx(math.sqrt(np.square(mine - theirs).sum()), rel=1e-5)
        assert one.sha256 == digest(download(actor, last.model_id, version=one.model_version)[1])


def test_the_first_round_is_what_the_others_alone_make_bit_for_bit(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients)
    first, *_ = replay(actor, made.training_id, clients[:1])
    alone = actor.create(client_ids=[client.user_id for client in clients[1:]])
    actor.start(alone.training_id)
    for place, client in enumerate(clients[1:], 1):
        client.submit(alone.training_id, draw(0, place), num_examples=WEIGHTS[place])
    until(lambda: actor.get(alone.training_id).model_version == 1)
    assert first.sha256 == digest(download(actor, alone.model_id, version=1)[1])


def test_nobody_left_out_makes_the_recorded_versions(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients, aggregation={"server_optimizer": {"yogi": {}}})
    found = replay(actor, made.training_id)
    assert [(one.exact, one.distance) for one in found] == [(True, 0)] * ROUNDS
    assert [one.sha256 for one in found] == [
        digest(download(actor, made.model_id, version=version)[1]) for version in range(1, ROUNDS + 1)
    ]


def test_rounds_without_updates_or_an_aggregate_leave_the_model_as_it_is(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients, aggregation={"trimmed_mean": {"beta": 0.0}, "mixing": {"bucketing": {"size": 1}}})
    found = replay(actor, made.training_id, clients)
    assert [(one.num_updates, one.problem) for one in found] == [(0, "no update is left")] * ROUNDS
    assert {one.sha256 for one in found} == {digest(download(actor, made.model_id, version=0)[1])}
    trusting = trained(actor, clients, aggregation={"fl_trust": {"trusted_client_id": clients[0].user_id}})
    *found, last = replay(actor, trusting.training_id, clients[:1], "without the trusted one")
    assert all("trust" in one.problem for one in found)
    assert len({one.sha256 for one in found}) == 1
    assert np.array_equal(versions(actor, last.model_id)[ROUNDS], versions(actor, trusting.model_id)[0])


def test_the_branch_is_a_model_of_the_actor(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients, aggregation={"server_optimizer": {"adam": {}}}, architecture="")
    before = versions(actor, made.model_id)
    *_, last = replay(actor, made.training_id, clients[:1], "without site 1")
    model = actor.models.GetModel(model_pb2.GetModelRequest(model_id=last.model_id)).model
    assert (model.name, model.version, model.source_model_id, model.source_version) == (
        "without site 1",
        ROUNDS,
        made.model_id,
        0,
    )
    asked = audit_pb2.GetContributionsRequest(model_id=last.model_id)
    origin = actor.audit.GetContributions(asked)
    assert (origin.origin.training_id, origin.origin.round) == (made.training_id, ROUNDS - 1)
    assert {one.user_id: one.weight for one in origin.contributions} == {
        clients[1].user_id: "2/7",
        clients[2].user_id: "5/7",
    }
    # Participants of the training do not see it, and the training is as it was.
    with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
        download(clients[1], last.model_id)
    after = versions(actor, made.model_id)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    further = actor.create(b"", client_ids=[clients[0].user_id], model_id=last.model_id)
    assert further.model_id != last.model_id
    actor.models.RemoveModel(model_pb2.RemoveModelRequest(model_id=last.model_id))
    with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
        download(actor, last.model_id)


def test_a_repeated_request_makes_no_other_branch(actor: Person, clients: list[Person]) -> None:
    made, request_id = trained(actor, clients), new_id()
    *_, first = replay(actor, made.training_id, clients[:1], "once", request_id)
    (again,) = replay(actor, made.training_id, clients[:1], "once", request_id)
    assert again.model_id == first.model_id
    actor.models.RemoveModel(model_pb2.RemoveModelRequest(model_id=first.model_id))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "request_id", "was removed"):
        replay(actor, made.training_id, clients[:1], "once", request_id)


def test_a_branch_of_a_part_of_the_model_has_deltas(actor: Person, clients: list[Person]) -> None:
    part = {"trainable": ["weight"]}
    made = actor.create(client_ids=[client.user_id for client in clients], target_num_updates=2, tensors=part)
    actor.start(made.training_id)
    for number in range(2):
        for place, client in enumerate(clients, 1):
            sent = safetensors.numpy.save({"weight": np.full((2, 3), place + number, np.float32)})
            client.submit(made.training_id, sent, number)
        until(lambda number=number: actor.get(made.training_id).model_version == number + 1)
    *_, last = replay(actor, made.training_id, clients[:1], "part")
    whole = safetensors.numpy.load(download(actor, last.model_id, version=2)[1])
    # 0 -> 2.5, and the mean of 3 and 4 is 1.5 from the recorded model, which is 2.
    np.testing.assert_array_equal(whole["weight"], np.full((2, 3), 4, np.float32))
    bases = {
        actor.models.GetModelVersions(model_pb2.GetModelVersionsRequest(model_id=id_)).versions[0].base_sha256
        for id_ in (made.model_id, last.model_id)
    }
    assert bases == {digest(download(actor, made.model_id, version=0)[1])}


def test_what_cannot_be_replayed_is_told_before_anything_is_computed(
    actor: Person, clients: list[Person], person: Any
) -> None:
    made = actor.create(client_ids=[client.user_id for client in clients])
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "no version yet"):
        replay(actor, made.training_id)
    actor.start(made.training_id)
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "ACTOR"):
        replay(clients[0], made.training_id)
    with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
        replay(person("ACTOR"), made.training_id)
    done = trained(actor, clients)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "without_client_ids"):
        replay(actor, done.training_id, [person("CLIENT")])
    dropped = trained(actor, clients, keep_versions=2)
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "keep_versions"):
        replay(actor, dropped.training_id, clients[:1])
    few = trained(actor, clients, keep_update_rounds=2)
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "keep_update_rounds is 2"):
        replay(actor, few.training_id, clients[:1])
    chained = actor.create(client_ids=[clients[0].user_id], aggregation={"fed_dc": {"aggregation_period": 1}})
    actor.start(chained.training_id)
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "daisy chaining"):
        replay(actor, chained.training_id)
