"""Models with values of their own kinds, by raw calls: NaN and Inf, integers that are averaged, other dtypes."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import TIMEOUT, Person, digest, download, fails_with, new_id, new_number, until
from fedround.v1 import model_pb2, training_pb2

MASK = np.array([0, -np.inf, np.nan, np.inf], np.float32)


def masked(value: float, mask: np.ndarray = MASK) -> bytes:
    return save({"mask": mask, "w": np.full(3, value, np.float32)})


def begin(actor: Person, clients: list[Person], data: bytes, **spec: Any) -> Any:
    made = actor.create(data, client_ids=[client.user_id for client in clients], **spec)
    return actor.start(made.training_id)


def upload(actor: Person, data: bytes, **spec: Any) -> model_pb2.Model:
    wanted = model_pb2.ModelSpec(**spec)
    return actor.models.UploadModel(
        iter([model_pb2.UploadModelRequest(spec=wanted, chunk=data)]), timeout=TIMEOUT
    ).model


def test_nan_and_inf_of_the_model_stay_in_every_version(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], masked(0), allow_non_finite_buffers=True, target_num_updates=2)
    assert training.spec.allow_non_finite_buffers
    for number in (0, 1):
        until(lambda current=number: actor.get(training.training_id).round == current)
        for client, value in zip(clients, (1 + number, 3 + number), strict=False):
            client.submit(training.training_id, masked(value), number)
    events = actor.subscribe(training.training_id, resume_after_sequence={training.training_id: 0})
    assert [event for event in events if event.HasField("training_finished")]
    after = load(download(actor, training.model_id)[1])
    assert after["mask"].tobytes() == MASK.tobytes()
    assert after["w"].tolist() == [3, 3, 3]


def test_nan_and_inf_are_rejected_where_the_model_has_none(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], masked(0), allow_non_finite_buffers=True)
    for place, value in ((0, np.inf), (1, np.inf), (2, -np.inf), (3, np.nan)):
        mask = MASK.copy()
        mask[place] = value
        with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "'mask' contains NaN or Inf where the model has none"):
            clients[0].submit(training.training_id, masked(1, mask))
    with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "'w' contains NaN or Inf where the model has none"):
        clients[0].submit(training.training_id, masked(np.nan))
    assert actor.get(training.training_id).updates_arrived == 0


def test_a_model_with_inf_says_which_option_accepts_it(actor: Person) -> None:
    words = "'mask' contains NaN or Inf", "allow_non_finite_buffers", "persistent=False"
    with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", *words):
        actor.create(masked(0))
    with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", *words):
        upload(actor, masked(0))


def test_a_training_of_a_stored_model_needs_the_option_too(actor: Person, clients: list[Person]) -> None:
    stored = upload(actor, masked(new_number()), allow_non_finite_buffers=True)
    for _ in range(2):  # The second training copies the model.
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec.allow_non_finite_buffers", "must be set") as call:
            actor.create(b"", model_id=stored.model_id)
        assert list(call.details.fields) == ["spec.allow_non_finite_buffers"]
        made = actor.create(b"", model_id=stored.model_id, allow_non_finite_buffers=True)
        actor.start(actor_with(actor, made, clients[0]).training_id)
        clients[0].submit(made.training_id, masked(1))
    finite = upload(actor, masked(1, np.zeros(4, np.float32)), allow_non_finite_buffers=True)
    assert not actor.create(b"", model_id=finite.model_id).spec.allow_non_finite_buffers


def actor_with(actor: Person, training: Any, client: Person) -> Any:
    request = training_pb2.RegisterClientsRequest(training_id=training.training_id, client_ids=[client.user_id])
    return actor.trainings.RegisterClients(request, timeout=TIMEOUT).training


def test_moments_have_neither_nan_nor_inf(actor: Person) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "does not go with swag") as call:
        actor.create(masked(0), allow_non_finite_buffers=True, uncertainty={"swag": {}})
    assert list(call.details.fields) == ["spec.allow_non_finite_buffers"]


def test_the_distance_of_an_update_leaves_its_inf_out(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], masked(0), allow_non_finite_buffers=True, max_update_norm=4)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "5.19615 away", "allows 4:"):
        clients[0].submit(training.training_id, masked(3))
    clients[0].submit(training.training_id, masked(2))


def test_a_chain_hands_inf_on(actor: Person, clients: list[Person]) -> None:
    chain = {"fed_dc": {"daisy_period": 1, "aggregation_period": 2}}
    training = begin(actor, clients[:2], masked(0), allow_non_finite_buffers=True, aggregation=chain)
    for number in (0, 1):
        until(lambda current=number: actor.get(training.training_id).round == current)
        for client, value in zip(clients, (1, 3), strict=False):
            client.submit(training.training_id, masked(value), number)
    events = actor.subscribe(training.training_id, resume_after_sequence={training.training_id: 0})
    assert [event for event in events if event.HasField("training_finished")]
    assert load(download(actor, training.model_id)[1])["mask"].tobytes() == MASK.tobytes()


INTEGERS = [(training_pb2.INTEGER_TENSORS_UNSPECIFIED, 5), (training_pb2.INTEGER_TENSORS_MEAN, 4)]


@pytest.mark.parametrize(("rule", "expected"), INTEGERS)
def test_integers_follow_the_rule_of_the_training(
    actor: Person, clients: list[Person], rule: Any, expected: int
) -> None:
    files = [save({"n": np.array([value], np.uint16), "w": np.zeros(1)}) for value in (0, 2, 5)]
    training = begin(actor, clients[:2], files[0], integer_tensors=rule)
    assert training.spec.integer_tensors == (rule or training_pb2.INTEGER_TENSORS_HEAVIEST)
    for client, data, weight in zip(clients, files[1:], (1, 2), strict=False):
        client.submit(training.training_id, data, num_examples=weight)
    events = actor.subscribe(training.training_id, resume_after_sequence={training.training_id: 0})
    assert [event for event in events if event.HasField("training_finished")]
    assert load(download(actor, training.model_id)[1])["n"].tolist() == [expected]


def test_an_unknown_rule_for_integers_is_rejected(actor: Person) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "is 9; known are", "INTEGER_TENSORS_MEAN") as call:
        actor.create(integer_tensors=9)
    assert list(call.details.fields) == ["spec.integer_tensors"]


def test_a_resumed_create_of_such_a_model_is_the_first_one(actor: Person) -> None:
    data, request_id = masked(new_number()), new_id()
    made = [actor.create(data, allow_non_finite_buffers=True, request_id=request_id) for _ in range(2)]
    assert made[0].training_id == made[1].training_id
    model = actor.models.GetModel(model_pb2.GetModelRequest(model_id=made[0].model_id), timeout=TIMEOUT).model
    assert model.sha256 == digest(data)
