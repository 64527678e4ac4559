"""Rare moments and unusual sizes of a training, over a port."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import TIMEOUT, Person, fails_with, kinds, model_file, new_id, until
from fedround.v1 import model_pb2, round_pb2, training_pb2, user_pb2
from servers import Server
from service.uploads import creating, submitting


def ids(people: list[Person]) -> list[str]:
    return [one.user_id for one in people]


def leave(actor: Person, training_id: str, *people: Person) -> training_pb2.Training:
    request = training_pb2.RemoveClientsRequest(training_id=training_id, client_ids=ids(list(people)))
    return actor.trainings.RemoveClients(request).training


def register(actor: Person, training_id: str, *people: Person) -> None:
    actor.trainings.RegisterClients(
        training_pb2.RegisterClientsRequest(training_id=training_id, client_ids=ids(list(people)))
    )


def whole_log(person: Person, training_id: str) -> list[Any]:
    """All events, up to the end of the training."""
    return list(person.subscribe(training_id, resume_after_sequence={training_id: 0}))


def test_all_but_one_may_be_removed(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients))
    actor.start(made.training_id)
    after = leave(actor, made.training_id, *clients[1:])
    assert list(after.participant_ids) == ids(clients[:1])
    assert (after.updates_arrived, after.updates_expected) == (0, 1)
    clients[0].submit(made.training_id, model_file(1))
    assert kinds(whole_log(actor, made.training_id))[-1] == "training_finished"


def test_who_was_removed_submits_nothing_more(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients))
    actor.start(made.training_id)
    leave(actor, made.training_id, clients[0])
    before = actor.get(made.training_id)
    with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT", "you do not belong to the cohort of this round"):
        clients[0].submit(made.training_id, model_file(1))
    assert actor.get(made.training_id) == before


def test_an_update_of_who_was_removed_is_superseded(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients))
    actor.start(made.training_id)
    first, data = clients[0], model_file(1)
    receipt = first.submit(made.training_id, data, num_examples=7)
    assert first.submit(made.training_id, data, num_examples=7) == receipt
    leave(actor, made.training_id, first)
    for back in (False, True):
        if back:
            register(actor, made.training_id, first)
        for upload_id in ("", new_id()):
            with fails_with("FAILED_PRECONDITION", "UPDATE_SUPERSEDED", "was superseded, and will not count") as error:
                first.submit(made.training_id, data, num_examples=7, upload_id=upload_id)
            assert error.details.metadata == {"update_id": receipt.update_id}
        with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT"):
            first.submit(made.training_id, model_file(2), num_examples=7)
    for other in clients[1:]:
        other.submit(made.training_id, model_file(3))
    assert kinds(whole_log(actor, made.training_id))[-1] == "training_finished"
    with fails_with("FAILED_PRECONDITION", "UPDATE_SUPERSEDED"):
        first.submit(made.training_id, data, num_examples=7)


def test_the_same_file_with_other_facts_is_another_update(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients))
    actor.start(made.training_id)
    first, data = clients[0], model_file(1)
    sent = {"num_examples": 7, "metrics": {"loss": 0.1}}
    receipt = first.submit(made.training_id, data, **sent)
    assert receipt.num_examples == 7
    for change in ({"num_examples": 8}, {"metrics": {"loss": 0.2}}, {"metrics": {}}):
        with fails_with("ALREADY_EXISTS", "UPDATE_EXISTS", f"different: {next(iter(change))}"):
            first.submit(made.training_id, data, **(sent | change))
    assert first.submit(made.training_id, data, **sent) == receipt


def test_a_removed_user_whose_update_was_the_last_one_missing_closes_the_round(
    admin: Person, actor: Person, clients: list[Person]
) -> None:
    made = actor.create(client_ids=ids(clients[:2]))
    actor.start(made.training_id)
    clients[0].submit(made.training_id, model_file(1))
    admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=clients[1].user_id))
    *_, left, closed, finished = whole_log(actor, made.training_id)
    assert kinds([left, closed, finished]) == ["client_removed", "round_closed", "training_finished"]
    assert closed.round_closed.num_updates == 1


def test_the_actor_may_register_itself(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients[:1]))
    request = training_pb2.RegisterClientsRequest(training_id=made.training_id, client_ids=[actor.user_id])
    after = actor.trainings.RegisterClients(request).training
    assert list(after.participant_ids) == sorted([actor.user_id, clients[0].user_id])
    actor.start(made.training_id)
    for one in (actor, clients[0]):
        one.submit(made.training_id, model_file(1))
    assert kinds(whole_log(actor, made.training_id))[-1] == "training_finished"


def test_a_training_that_is_removed_while_an_update_arrives(
    server: Server, actor: Person, clients: list[Person]
) -> None:
    upload, data = submitting(actor, clients[0], model_file()), model_file(12_345)
    go_on = threading.Event()
    training_id = upload.needs["training_id"]
    before = set((server.data_dir / "tmp").iterdir())

    def messages() -> Iterator[Any]:
        yield upload.spec(data)
        first, *rest = upload.chunks(data, len(data) // 2)
        yield first
        go_on.wait(TIMEOUT)
        yield from rest

    call = upload.begin(messages())
    until(lambda: set((server.data_dir / "tmp").iterdir()) - before)
    actor.trainings.RemoveTraining(training_pb2.RemoveTrainingRequest(training_id=training_id, force=True))
    go_on.set()
    with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND", training_id):
        call.result()
    assert kinds(whole_log(actor, training_id)) == ["training_started", "round_started", "training_removed"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_metrics_that_are_no_numbers(actor: Person, clients: list[Person], value: float) -> None:
    """They are stored and shown with their reporters, counted, and left out of the means."""
    made = actor.create(client_ids=ids(clients[:2]), metric_names=["accuracy"])
    actor.start(made.training_id)
    events = actor.subscribe(made.training_id)
    clients[0].submit(made.training_id, model_file(1), metrics={"loss": value})
    clients[1].submit(made.training_id, model_file(1), metrics={"loss": 2})
    next(event for event in events if event.round_started.round == 1)
    reports = [
        round_pb2.SubmitMetricsRequest(
            training_id=made.training_id, round=1, num_examples=1, metrics={"accuracy": value, "odd": value}
        ),
        round_pb2.SubmitMetricsRequest(
            training_id=made.training_id, round=1, num_examples=3, metrics={"accuracy": 0.5}
        ),
    ]
    for client, report in zip(clients, reports, strict=False):
        for _ in range(2):
            client.rounds.SubmitMetrics(report)
    reports[0].metrics["accuracy"] = 0.5
    with fails_with("ALREADY_EXISTS", "METRICS_EXIST"):
        clients[0].rounds.SubmitMetrics(reports[0])
    assert kinds(list(events))[-1] == "training_finished"
    closed = [event.round_closed for event in whole_log(actor, made.training_id) if event.HasField("round_closed")]
    assert [dict(one.metrics) for one in closed] == [{"loss": 2}, {"accuracy": 0.5}]
    assert [dict(one.not_finite) for one in closed] == [{"loss": 1}, {"accuracy": 1, "odd": 1}]
    cursor = {made.training_id: 0}
    seen = [one.round_closed for one in clients[1].subscribe(made.training_id, resume_after_sequence=cursor)]
    assert not any(one.not_finite for one in seen)
    request = model_pb2.GetMetricsRequest(model_id=made.model_id)
    by_reporter = {(one.round, one.reporter_id): dict(one.metrics) for one in actor.models.GetMetrics(request).reports}
    assert by_reporter[1, ""] == {"accuracy": 0.5}
    assert str(by_reporter[1, clients[0].user_id]["accuracy"]) == str(value)


def test_metrics_of_which_none_is_a_number(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients[:1]), metric_names=["accuracy"])
    actor.start(made.training_id)
    events = actor.subscribe(made.training_id)
    clients[0].submit(made.training_id, model_file(1))
    next(event for event in events if event.round_started.round == 1)
    report = round_pb2.SubmitMetricsRequest(training_id=made.training_id, round=1, num_examples=1)
    report.metrics["accuracy"] = float("nan")
    clients[0].rounds.SubmitMetrics(report)
    assert kinds(list(events))[-1] == "training_finished"
    request = model_pb2.GetMetricsRequest(model_id=made.model_id)
    mean, reported = actor.models.GetMetrics(request).reports
    assert (mean.reporter_id, dict(mean.metrics)) == ("", {})
    assert (reported.reporter_id, str(reported.metrics["accuracy"])) == (clients[0].user_id, "nan")


def test_20000_tensors(actor: Person, clients: list[Person]) -> None:
    """As many as a file may have, through a whole round of one participant."""

    def file(value: int) -> bytes:
        return save({f"layer.{number}": np.full(1, value + number, np.float32) for number in range(20_000)})

    upload = creating(actor)
    data = file(0)
    made = upload.send(
        upload.request(spec={"name": "t", "target_num_updates": 1, "client_ids": ids(clients[:1])}),
        *upload.chunks(data),
    ).training
    actor.start(made.training_id)
    clients[0].submit(made.training_id, file(1))
    assert kinds(whole_log(actor, made.training_id))[-1] == "training_finished"
    messages = actor.models.DownloadModel(model_pb2.DownloadModelRequest(model_id=made.model_id))
    after = load(b"".join(message.chunk for message in messages))
    assert {name: tensor.item() for name, tensor in after.items()} == {
        f"layer.{number}": 1 + number for number in range(20_000)
    }


def test_torch_stays_out_of_the_server(server: Server, actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients[:1]))
    actor.start(made.training_id)
    clients[0].submit(made.training_id, model_file(1))
    assert kinds(whole_log(actor, made.training_id))[-1] == "training_finished"
    process = Path(f"/proc/{server.pid}")
    workers = [Path("/proc") / pid for pid in (process / f"task/{server.pid}/children").read_text().split()]
    assert any("libtorch" in (worker / "maps").read_text() for worker in workers)
    assert "libtorch" not in (process / "maps").read_text()
