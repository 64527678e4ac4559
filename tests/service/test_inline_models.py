"""Small models that come with the start of a round: who gets them, when, and what becomes of those that do not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import Events, Person, digest, download, fails_with, model_file, new_number, until
from damage import flip, stored
from fedround.v1 import event_pb2, round_pb2, server_pb2, server_pb2_grpc, training_pb2
from servers import Server

MOST = 1 << 20


def file_of(size: int) -> bytes:
    """A model of a size in bytes, unlike all others."""
    header = len(save({"w": np.zeros(size // 4 - 32, np.float32)})) - 4 * (size // 4 - 32)
    data = np.zeros((size - header) // 4, np.float32)
    data[:2] = new_number() % 10**6, new_number() % 10**6
    made = save({"w": data})
    assert len(made) == size
    return made


def begin(actor: Person, clients: list[Person], data: bytes, **spec: Any) -> training_pb2.Training:
    made = actor.create(data, client_ids=[client.user_id for client in clients], **spec)
    return actor.start(made.training_id)


def start_of(events: Events, number: int = 0) -> event_pb2.RoundStarted:
    """Returns the start of a round, and checks the model that comes with it."""
    started = (event.round_started for event in events if event.HasField("round_started"))
    found = next(one for one in started if one.round == number)
    assert not found.inline_model or digest(found.inline_model) == found.model.sha256
    return found


def inline(person: Person, training_id: str, number: int = 0, limit: int = MOST, **request: Any) -> bytes:
    """Returns the model that comes with a round in a new subscription."""
    events = person.subscribe(training_id, inline_model_bytes=limit, **request)
    found = start_of(events, number).inline_model
    events.cancel()
    return found


def sent_bytes(admin: Person) -> int:
    stub = server_pb2_grpc.ServerServiceStub(admin.channel)
    metadata = (("authorization", f"Bearer {admin.token}"),)
    return int(stub.GetServerStatus(server_pb2.GetServerStatusRequest(), metadata=metadata).status.sent_bytes)


@pytest.mark.parametrize("size", [1000, MOST])
def test_a_model_comes_if_it_is_not_larger_than_the_subscriber_takes(
    actor: Person, clients: list[Person], admin: Person, size: int
) -> None:
    data = file_of(size)
    training_id = begin(actor, clients, data).training_id
    first, second, third = clients
    before = sent_bytes(admin)
    opened = [
        first.subscribe(training_id, inline_model_bytes=size),
        second.subscribe("", inline_model_bytes=MOST),
    ]
    assert [start_of(events).inline_model for events in opened] == [data, data]
    # It is counted once it is sent, unless the subscriber has left.
    until(lambda: sent_bytes(admin) == before + 2 * size)
    for events in opened:
        events.cancel()
    assert inline(third, training_id, limit=size - 1) == b""
    assert inline(third, training_id, limit=0) == b""
    assert sent_bytes(admin) == before + 2 * size
    assert download(third, actor.get(training_id).model_id)[1] == data


def test_a_model_of_more_than_a_mebibyte_never_comes(actor: Person, clients: list[Person]) -> None:
    data = file_of(MOST + 4)
    spec = training_pb2.TrainingSpec(name="t", target_num_updates=1, client_ids=[client.user_id for client in clients])
    messages = [training_pb2.CreateTrainingRequest(spec=spec, chunk=data[:MOST])]
    messages.append(training_pb2.CreateTrainingRequest(chunk=data[MOST:]))
    training_id = actor.trainings.CreateTraining(iter(messages)).training.training_id
    actor.start(training_id)
    assert inline(clients[0], training_id) == b""
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "inline_model_bytes", "at most 1048576"):
        inline(clients[0], training_id, limit=MOST + 1)


def test_it_comes_while_the_subscriber_waits(actor: Person, clients: list[Person], data: bytes) -> None:
    made = actor.create(data, client_ids=[client.user_id for client in clients])
    waiting = [client.subscribe(inline_model_bytes=limit) for client, limit in zip(clients, (MOST, 0, 10), strict=True)]
    actor.start(made.training_id)
    assert [start_of(events).inline_model for events in waiting] == [data, b"", b""]
    for events in waiting:
        events.cancel()


def test_who_has_nothing_to_do_gets_none(
    actor: Person, clients: list[Person], person: Callable[..., Person], data: bytes
) -> None:
    training_id = begin(actor, clients[:2], data).training_id
    for other in (actor, person("VIEWER")):
        assert inline(other, training_id) == b""
    clients[0].submit(training_id, model_file(1))
    assert inline(clients[0], training_id) == b""
    # A late one still has to train.
    assert inline(clients[1], training_id) == data
    removal = training_pb2.RemoveClientsRequest(training_id=training_id, client_ids=[clients[1].user_id])
    actor.trainings.RemoveClients(removal)
    log = {"resume_after_sequence": {training_id: 1}}
    assert inline(clients[1], training_id, **log) == b""


def test_an_actor_that_takes_part_gets_it_until_it_has_submitted(
    actor: Person, clients: list[Person], data: bytes
) -> None:
    training_id = begin(actor, [actor, clients[0]], data).training_id
    assert inline(actor, training_id) == data
    actor.submit(training_id, model_file(1))
    assert inline(actor, training_id) == b""


def test_a_resumed_subscription_gets_the_model_of_the_open_round_again(
    actor: Person, clients: list[Person], data: bytes
) -> None:
    training_id = begin(actor, clients[:1], data, target_num_updates=2).training_id
    log = {"resume_after_sequence": {training_id: 1}}
    events = clients[0].subscribe(training_id, inline_model_bytes=MOST, **log)
    for _ in range(2):
        assert inline(clients[0], training_id, **log) == data
    assert start_of(events).inline_model == data
    clients[0].submit(training_id, model_file(1))
    second = start_of(events, 1).inline_model
    assert digest(second) == digest(download(actor, actor.get(training_id).model_id, version=1)[1])
    assert inline(clients[0], training_id, **log) == b""
    assert inline(clients[0], training_id, 1, **log) == second
    events.cancel()


def test_a_model_that_came_last_does_not_come_again(actor: Person, clients: list[Person], data: bytes) -> None:
    spec = {"metric_names": ["loss"], "target_num_updates": 2, "uncertainty": {"swag": {"rank": 2}}}
    training_id = begin(actor, clients[:1], data, **spec).training_id
    events = clients[0].subscribe(training_id, inline_model_bytes=MOST)
    assert start_of(events).inline_model == data
    clients[0].submit(training_id, model_file(1))
    evaluation = start_of(events, 1)
    assert evaluation.kind == event_pb2.ROUND_KIND_EVALUATE
    assert evaluation.inline_model
    report = round_pb2.SubmitMetricsRequest(training_id=training_id, round=1, num_examples=1, metrics={"loss": 0.5})
    clients[0].rounds.SubmitMetrics(report)
    # The same version, which the subscriber has; another subscription may lack it.
    again = start_of(events, 2)
    assert (again.model, again.inline_model) == (evaluation.model, b"")
    assert inline(clients[0], training_id, 2) == evaluation.inline_model
    events.cancel()


def test_a_swag_round_has_one(actor: Person, clients: list[Person], data: bytes) -> None:
    training_id = begin(actor, clients[:1], data, uncertainty={"swag": {"rank": 2}}).training_id
    events = clients[0].subscribe(training_id, inline_model_bytes=MOST)
    clients[0].submit(training_id, model_file(1))
    started = start_of(events, 1)
    assert started.kind == event_pb2.ROUND_KIND_SWAG
    assert load(started.inline_model)["weight"].max() == 1
    events.cancel()


def test_a_model_that_is_assigned_does_not_come(actor: Person, clients: list[Person], data: bytes) -> None:
    chained = {"fed_dc": {"aggregation_period": 3, "seed": 5}}
    training_id = begin(actor, clients[:2], data, aggregation=chained).training_id
    assert inline(clients[0], training_id) == data
    for number, client in enumerate(clients[:2]):
        client.submit(training_id, model_file(number))
    started = start_of(clients[0].subscribe(training_id, inline_model_bytes=MOST), 1)
    assert (started.assigned, started.inline_model) == (True, b"")


def test_a_version_that_is_a_delta_does_not_come(actor: Person, clients: list[Person], data: bytes) -> None:
    training_id = begin(actor, clients[:1], data, tensors={"trainable": ["wei*"]}, target_num_updates=2).training_id
    assert inline(clients[0], training_id) == data
    clients[0].submit(training_id, save({"weight": load(data)["weight"]}))
    started = start_of(clients[0].subscribe(training_id, inline_model_bytes=MOST), 1)
    assert started.model.delta_sha256
    assert started.inline_model == b""


def test_a_damaged_model_does_not_come(server: Server, actor: Person, clients: list[Person], data: bytes) -> None:
    training_id = begin(actor, clients, data).training_id
    flip(stored(server.data_dir, digest(data)), -1)
    for client in clients:
        assert inline(client, training_id) == b""
    with fails_with("DATA_LOSS", "MODEL_DAMAGED", "version 0 of the model"):
        download(clients[0], actor.get(training_id).model_id)


def test_a_repeated_round_has_it_for_those_who_come(actor: Person, clients: list[Person], data: bytes) -> None:
    policy = {
        "deadline": {"nanos": 500_000_000},
        "on_missed": training_pb2.ON_MISSED_RETRY,
        "max_retries": 1000,
    }
    training_id = begin(actor, clients[:1], data, round_policy=policy).training_id
    events = clients[0].subscribe(training_id, inline_model_bytes=MOST)
    assert start_of(events).inline_model == data
    assert next(event for event in events if event.HasField("round_extended")).round_extended.attempt >= 2
    events.cancel()
    found = start_of(clients[0].subscribe(training_id, inline_model_bytes=MOST))
    assert found.attempt >= 2
    assert found.inline_model == data
