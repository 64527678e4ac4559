"""ReportFailure: a participant that cannot deliver does not hold up the others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from calls import Person, digest, download, fails_with, kinds, model_file
from fedround.v1 import model_pb2, round_pb2, training_pb2


def report_failure(client: Person, training_id: str, number: int = 0, **changed: Any) -> None:
    fields = {"reason": "TRAIN_FAILED", "message": "CUDA out of memory", **changed}
    request = round_pb2.ReportFailureRequest(training_id=training_id, round=number, **fields)
    client.rounds.ReportFailure(request)


def begin(actor: Person, clients: list[Person], **spec: Any) -> training_pb2.Training:
    made = actor.create(client_ids=[client.user_id for client in clients], **spec)
    return actor.start(made.training_id)


def look(actor: Person, training_id: str) -> round_pb2.Round:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id)).round


def test_a_failure_is_told_and_the_round_goes_on(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients).training_id
    events = actor.subscribe(training_id)
    assert kinds(events.next(1)) == ["round_started"]
    report_failure(clients[2], training_id)
    (event,) = events.next(1)
    failed = event.participant_failed
    assert (failed.round, failed.participant_id) == (0, clients[2].user_id)
    assert (failed.reason, failed.message) == ("TRAIN_FAILED", "CUDA out of memory")
    assert (failed.updates_arrived, failed.updates_expected) == (0, 2)
    found = look(actor, training_id)
    assert (found.num_failed, found.updates_expected, found.num_participants) == (1, 2, 3)
    assert "2 more of 2 updates (1 of 3 participants failed)" in found.waiting_for
    first = found.participants[0]
    assert (first.user_id, first.name) == (clients[2].user_id, failed.participant_name)
    assert (first.failure.reason, first.failure.message) == ("TRAIN_FAILED", "CUDA out of memory")
    assert first.failure.fail_time == event.create_time
    assert not any(one.HasField("failure") for one in found.participants[1:])
    assert list(actor.get(training_id).failures) == [first.failure]
    assert list(clients[0].get(training_id).failures) == []
    listed = actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings[0]
    assert (listed.training_id, list(listed.failures)) == (training_id, [])
    for client in clients[:2]:
        client.submit(training_id, model_file(1))
    assert kinds(list(events)) == ["update_accepted", "update_accepted", "round_closed", "training_finished"]


def test_nobody_left_ends_the_training_with_names_and_reasons(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients[:2]).training_id
    log = clients[0].subscribe(training_id)
    names = {one.user_id: one.name for one in look(actor, training_id).participants}
    for client, message in zip(clients, ["no data", "\x1b[2Jno\0disk"], strict=False):
        report_failure(client, training_id, message=message)
    error = actor.get(training_id).error
    assert error.reason == "PARTICIPANTS_FAILED"
    for client, message in zip(clients, ["no data", " [2Jno disk"], strict=False):
        assert f"{names[client.user_id]} (TRAIN_FAILED: {message})" in error.message
    failed = list(log)[-1].training_failed
    assert failed.reason == "PARTICIPANTS_FAILED"
    # Who failed, and why, is not for other participants.
    assert not any(words in failed.message for words in (*names.values(), "no data"))


def test_the_policy_is_echoed_and_may_end_the_training(actor: Person, clients: list[Person]) -> None:
    policy = {"on_failure": training_pb2.ON_FAILURE_FAIL, "absent_after": {"seconds": 90}}
    made = begin(actor, clients, round_policy=policy)
    assert made.spec.round_policy.on_failure == training_pb2.ON_FAILURE_FAIL
    assert made.spec.round_policy.absent_after.ToSeconds() == 90
    for _ in range(2):
        report_failure(clients[1], made.training_id)
    assert actor.get(made.training_id).error.reason == "PARTICIPANTS_FAILED"
    default = begin(actor, clients).spec.round_policy
    assert default.on_failure == training_pb2.ON_FAILURE_CONTINUE
    assert not default.HasField("absent_after")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"on_failure": 99}, "on_failure"),
        ({"absent_after": {"seconds": 0}}, "absent_after"),
        ({"absent_after": {"seconds": -1}}, "absent_after"),
        ({"absent_after": {"seconds": 366 * 86_400}}, "absent_after"),
    ],
)
def test_a_policy_that_is_not_valid(actor: Person, changed: dict[str, Any], field: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"spec.round_policy.{field}"):
        actor.create(round_policy=changed)


@pytest.mark.parametrize("reason", ["", "x" * 65, "no words", "ABSENT", "\n"])
def test_a_reason_that_is_not_valid(actor: Person, clients: list[Person], reason: str) -> None:
    training_id = begin(actor, clients).training_id
    before = actor.get(training_id)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "reason"):
        report_failure(clients[0], training_id, reason=reason)
    assert actor.get(training_id) == before


def test_who_may_report(actor: Person, clients: list[Person], person: Callable[..., Person]) -> None:
    training_id = begin(actor, clients[:2]).training_id
    late, unrelated = clients[2], person("CLIENT")
    request = training_pb2.RegisterClientsRequest(training_id=training_id, client_ids=[late.user_id])
    actor.trainings.RegisterClients(request)
    for caller in (actor, unrelated):
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            report_failure(caller, training_id)
    with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT"):
        report_failure(late, training_id)
    with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "the current round is 0"):
        report_failure(clients[0], training_id, 1)
    clients[0].submit(training_id, model_file(1))
    with fails_with("ALREADY_EXISTS", "UPDATE_EXISTS"):
        report_failure(clients[0], training_id)
    assert look(actor, training_id).num_failed == 0


def test_who_failed_and_submits_all_the_same(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients[:2]).training_id
    report_failure(clients[0], training_id)
    assert clients[0].submit(training_id, model_file(1)).round == 0
    found = look(actor, training_id)
    assert (found.num_failed, found.updates_arrived, found.updates_expected) == (0, 1, 2)


class TestZeroExamples:
    def test_an_update_arrives_and_has_no_weight(self, actor: Person, clients: list[Person]) -> None:
        made = begin(actor, clients[:2], metric_names=["accuracy"])
        events = actor.subscribe(made.training_id)
        clients[0].submit(made.training_id, model_file(4), num_examples=0, metrics={"loss": 100})
        clients[1].submit(made.training_id, model_file(2), num_examples=3, metrics={"loss": 1})
        next(event for event in events if event.round_started.round == 1)
        after = load(download(actor, made.model_id)[1])
        expected = load(model_file(2))
        assert all(np.array_equal(after[name], expected[name]) for name in expected)
        for client, examples, accuracy in ((clients[0], 0, 0.1), (clients[1], 5, 0.9)):
            client.rounds.SubmitMetrics(
                round_pb2.SubmitMetricsRequest(
                    training_id=made.training_id, round=1, num_examples=examples, metrics={"accuracy": accuracy}
                )
            )
        log = actor.subscribe(made.training_id, resume_after_sequence={made.training_id: 0})
        closed = [one.round_closed for one in log if one.HasField("round_closed")]
        assert [dict(one.metrics) for one in closed] == [{"loss": 1}, {"accuracy": 0.9}]
        assert [one.num_updates for one in closed] == [2, 2]
        request = model_pb2.GetMetricsRequest(model_id=made.model_id)
        reporters = {(one.round, one.reporter_id) for one in actor.models.GetMetrics(request).reports}
        assert (1, clients[0].user_id) in reporters

    def test_without_any_example_the_model_stays_as_it_is(self, actor: Person, clients: list[Person]) -> None:
        data = model_file(7)
        made = actor.create(data, client_ids=[client.user_id for client in clients[:2]])
        actor.start(made.training_id)
        events = actor.subscribe(made.training_id)
        for client in clients[:2]:
            client.submit(made.training_id, model_file(4), num_examples=0)
        assert kinds(list(events))[-1] == "training_finished"
        info, file = download(actor, made.model_id)
        assert (info.version, digest(file)) == (1, info.sha256)
        before, after = load(data), load(file)
        assert all(np.array_equal(after[name], before[name]) for name in before)
