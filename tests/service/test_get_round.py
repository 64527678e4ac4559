"""Why a round is waiting, by raw calls: who, which rule, until when, and what was rejected."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save

from calls import Person, fails_with, kinds, model_file, new_id, until, update_spec
from fedround.v1 import round_pb2, training_pb2
from fedround.v1.round_pb2 import SubmitMetricsRequest, SubmitUpdateRequest
from servers import Server


def look(actor: Person, training_id: str, **request: Any) -> round_pb2.Round:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id, **request)).round


def member(found: round_pb2.Round, person: Person) -> round_pb2.RoundParticipant:
    return next(one for one in found.participants if one.user_id == person.user_id)


def begin(actor: Person, clients: list[Person], **spec: Any) -> str:
    made = actor.create(client_ids=[client.user_id for client in clients], **spec)
    actor.start(made.training_id)
    return made.training_id


def test_which_rule_holds_a_round_and_what_its_deadline_does(actor: Person, clients: list[Person]) -> None:
    found = look(actor, begin(actor, clients))
    assert (found.wait_rule, found.on_deadline) == (round_pb2.WAIT_RULE_ALL_UPDATES, training_pb2.ON_MISSED_UNSPECIFIED)
    assert (found.attempt, found.max_attempts, found.HasField("deadline")) == (1, 1, False)
    hour = {"seconds": 3600}
    found = look(actor, begin(actor, clients, round_policy={"min_updates": 2, "deadline": hour}))
    assert (found.wait_rule, found.on_deadline) == (round_pb2.WAIT_RULE_MIN_UPDATES, training_pb2.ON_MISSED_FAIL)
    assert "fewer than that end the training in ERROR" in found.waiting_for
    retry = {"min_updates": 1, "deadline": hour, "on_missed": training_pb2.ON_MISSED_RETRY, "max_retries": 2}
    training_id = begin(actor, clients, round_policy=retry)
    found = look(actor, training_id)
    assert (found.on_deadline, found.attempt, found.max_attempts) == (training_pb2.ON_MISSED_RETRY, 1, 3)
    assert "it is repeated (attempt 1 of 3)" in found.waiting_for
    events = actor.subscribe(training_id)
    clients[0].submit(training_id, model_file(1))
    assert kinds(list(events))[-1] == "training_finished"
    found = look(actor, training_id)
    assert (found.wait_rule, found.on_deadline) == (
        round_pb2.WAIT_RULE_UNSPECIFIED,
        training_pb2.ON_MISSED_UNSPECIFIED,
    )


def test_who_listens_is_there(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients[:2])
    found = look(actor, training_id)
    for client in clients[:2]:
        one = member(found, client)
        assert (one.arrived, one.subscribed, one.HasField("last_seen_time")) == (False, False, False)
        assert one.missing_since_time == found.open_time
    events = clients[0].subscribe(training_id)
    first = member(look(actor, training_id), clients[0])
    second = member(look(actor, training_id), clients[0])
    assert first.subscribed
    assert first.last_seen_time.ToNanoseconds() < second.last_seen_time.ToNanoseconds()
    events.cancel()
    until(lambda: not member(look(actor, training_id), clients[0]).subscribed)
    gone = member(look(actor, training_id), clients[0])
    assert gone.last_seen_time.ToNanoseconds() >= second.last_seen_time.ToNanoseconds()
    assert member(look(actor, training_id), clients[0]).last_seen_time == gone.last_seen_time
    clients[0].submit(training_id, model_file(1))
    here = member(look(actor, training_id), clients[0])
    assert (here.arrived, here.HasField("missing_since_time")) == (True, False)


def test_the_bytes_of_an_upload_are_seen_also_between_its_tries(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients[:2])
    data, upload_id = model_file(1), new_id()
    may_end = threading.Event()

    def uploaded() -> int:
        return member(look(actor, training_id), clients[0]).uploaded_bytes

    def messages(offset: int, end: int) -> Iterator[SubmitUpdateRequest]:
        yield SubmitUpdateRequest(spec=update_spec(training_id, data, upload_id=upload_id, offset=offset))
        yield SubmitUpdateRequest(chunk=data[offset:end])
        assert may_end.wait(60)

    assert uploaded() == 0
    for offset, end in ((0, 70), (70, 90)):
        may_end.clear()
        call = clients[0].rounds.SubmitUpdate.future(messages(offset, end))
        until(lambda end=end: uploaded() == end)  # type: ignore[misc]  # a default binds it
        may_end.set()
        with fails_with("DATA_LOSS", "UPLOAD_INCOMPLETE", str(end)):
            call.result()
        assert uploaded() == end
    rest = [
        SubmitUpdateRequest(spec=update_spec(training_id, data, upload_id=upload_id, offset=90)),
        SubmitUpdateRequest(chunk=data[90:]),
    ]
    clients[0].rounds.SubmitUpdate(iter(rest))
    assert uploaded() == 0


NOT_FINITE = model_file(bias=np.full(3, np.nan))
REFUSED: list[tuple[str, str, Callable[[Person, str], object]]] = [
    ("INVALID_ARGUMENT", "TENSORS_MISMATCH", lambda client, id_: client.submit(id_, save({"w": np.zeros(1)}))),
    ("INVALID_ARGUMENT", "UPDATE_MISMATCH", lambda client, id_: client.submit(id_, model_file(bias=np.zeros(1)))),
    ("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", lambda client, id_: client.submit(id_, NOT_FINITE)),
    ("INVALID_ARGUMENT", "UPDATE_NORM", lambda client, id_: client.submit(id_, model_file(1000))),
    ("INVALID_ARGUMENT", "NUM_EXAMPLES", lambda client, id_: client.submit(id_, model_file(1), num_examples=0)),
    ("INVALID_ARGUMENT", "MODEL_FORMAT", lambda client, id_: client.submit(id_, b"12345678" * 9)),
    ("INVALID_ARGUMENT", "FIELD_INVALID", lambda client, id_: client.submit(id_, model_file(1), sha256="x")),
    ("DATA_LOSS", "DIGEST_MISMATCH", lambda client, id_: client.submit(id_, model_file(1), sha256="0" * 64)),
    ("DATA_LOSS", "UPLOAD_INCOMPLETE", lambda client, id_: client.submit(id_, model_file(1), size_bytes=10_000)),
    ("RESOURCE_EXHAUSTED", "MODEL_TOO_LARGE", lambda client, id_: client.submit(id_, b"", size_bytes=10_000_000)),
    ("FAILED_PRECONDITION", "ROUND_NOT_OPEN", lambda client, id_: client.submit(id_, model_file(1), 1)),
    (
        "FAILED_PRECONDITION",
        "ROUND_NOT_OPEN",
        lambda client, id_: client.rounds.SubmitMetrics(SubmitMetricsRequest(training_id=id_, num_examples=1)),
    ),
]


def test_rejected_updates_are_seen_by_the_actor_and_not_in_the_round(
    actor: Person, clients: list[Person], person: Callable[..., Person]
) -> None:
    training_id = begin(actor, clients[:2], max_update_norm=100)
    before = actor.get(training_id)
    for code, reason, call in REFUSED:
        with fails_with(code, reason, ""):
            call(clients[0], training_id)
    receipt = clients[1].submit(training_id, model_file(1))
    with fails_with("ALREADY_EXISTS", "UPDATE_EXISTS"):
        clients[1].submit(training_id, model_file(2))
    late, unrelated = clients[2], person("CLIENT")
    request = training_pb2.RegisterClientsRequest(training_id=training_id, client_ids=[late.user_id])
    actor.trainings.RegisterClients(request)
    with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT"):
        late.submit(training_id, model_file(1))
    with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
        unrelated.submit(training_id, NOT_FINITE)
    with fails_with("INVALID_ARGUMENT", "NUM_EXAMPLES"):
        unrelated.submit(training_id, model_file(1), num_examples=0)

    found = look(actor, training_id)
    own = {one.reason: one.count for one in member(found, clients[0]).rejected_updates}
    assert own == {reason: 2 if reason == "ROUND_NOT_OPEN" else 1 for _, reason, _ in REFUSED}
    assert {one.reason: one.count for one in member(found, clients[1]).rejected_updates} == {"UPDATE_EXISTS": 1}
    assert {one.reason: one.count for one in found.rejected_updates} == {**own, "UPDATE_EXISTS": 1, "NOT_IN_COHORT": 1}
    spoilt = next(one for one in found.rejected_updates if one.reason == "UPDATE_NOT_FINITE")
    assert "'bias' contains NaN or Inf" in spoilt.message
    assert spoilt.last_time.ToNanoseconds() > before.update_time.ToNanoseconds()
    assert (found.updates_arrived, found.updates_expected) == (1, 2)
    clients[0].submit(training_id, model_file(1))
    events = list(actor.subscribe(training_id, resume_after_sequence={training_id: 0}))
    assert next(one for one in events if one.HasField("round_closed")).round_closed.num_updates == 2
    assert receipt.update_id in {one.update_accepted.update_id for one in events}


def test_rejected_reports_are_seen_too(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients[:1], metric_names=["accuracy"])
    events = actor.subscribe(training_id)
    clients[0].submit(training_id, model_file(1))
    assert next(event for event in events if event.HasField("round_started") and event.round_started.round == 1)

    def report(num_examples: int = 1, **metrics: float) -> None:
        request = SubmitMetricsRequest(training_id=training_id, round=1, num_examples=num_examples, metrics=metrics)
        clients[0].rounds.SubmitMetrics(request)

    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "accuracy"):
        report(loss=1.0)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "accuracy"):
        report(accuracy=float("inf"))
    with fails_with("INVALID_ARGUMENT", "NUM_EXAMPLES"):
        report(0, accuracy=1.0)
    found = look(actor, training_id)
    assert {one.reason: one.count for one in found.rejected_updates} == {
        "FIELD_INVALID": 1,
        "UPDATE_NOT_FINITE": 1,
        "NUM_EXAMPLES": 1,
    }
    assert look(actor, training_id, round=0).rejected_updates == []
    report(accuracy=1.0)
    assert kinds(list(events))[-1] == "training_finished"


def test_a_forecast_of_the_second_round(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients[:2], target_num_updates=2)
    found = look(actor, training_id)
    assert not found.HasField("forecast_end_time")
    events = actor.subscribe(training_id)
    for client in clients[:2]:
        client.submit(training_id, model_file(1))
    assert next(event for event in events if event.HasField("round_started") and event.round_started.round == 1)
    found = look(actor, training_id)
    arrivals = [one.forecast_arrive_time.ToNanoseconds() for one in found.participants]
    assert found.forecast_end_time.ToNanoseconds() == max(arrivals)
    assert min(arrivals) > found.open_time.ToNanoseconds()


def test_what_is_known_after_a_restart(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, grpc.insecure_channel(server.address) as channel:
        admin = Person(channel, server.admin_token)
        actor, client = admin.make(server.address, "ACTOR"), admin.make(server.address, "CLIENT")
        training_id = begin(actor, [client])
        with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "bias"):
            client.submit(training_id, NOT_FINITE)
        before = member(look(actor, training_id), client)
        server.stop()
        server.start()
        with grpc.insecure_channel(server.address) as again:
            after = member(look(Person(again, actor.token), training_id), client)
        assert after.last_seen_time == before.last_seen_time
        assert after.rejected_updates == before.rejected_updates
        assert after.missing_since_time == before.missing_since_time
