"""What participants and actors say that they do and wait for."""

import json
import logging
from contextlib import nullcontext

import grpc
import pytest

from client.rounds import Rounds, finished, round_started
from client.scripted import OTHER, TRAINING, USER, done, error_status, until
from fedround.v1 import event_pb2
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_SWAG, Event, RoundClosed, UpdateAccepted
from fedround.v1.round_pb2 import GetRoundResponse, Round, RoundParticipant, SubmitMetricsResponse
from fedround.v1.training_pb2 import (
    EVALUATION_EVERY_ROUND,
    TRAINING_STATE_INITIAL,
    TRAINING_STATE_ONGOING,
    GetTrainingResponse,
    GetTrainingsResponse,
    Training,
    TrainingSpec,
)
from fedround.v1.user_pb2 import GetMyselfResponse, User
from fedround_client import progress
from fedround_client.command import live
from fedround_client.progress import list_words, transfer_log

pytestmark = pytest.mark.timeout(30)

DIGITS = Training(
    training_id=TRAINING,
    state=TRAINING_STATE_ONGOING,
    spec=TrainingSpec(name="digits", target_num_updates=10, metric_names=["loss"], evaluation=EVALUATION_EVERY_ROUND),
)


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, "fedround_client")
    return lambda: [record.getMessage() for record in caplog.records]


def accepted(sequence, user_id, arrived):
    payload = UpdateAccepted(round=0, participant_id=user_id, updates_arrived=arrived, updates_expected=3)
    return Event(training_id=TRAINING, sequence=sequence, update_accepted=payload)


def three_sites(*arrived):
    ids = {USER: "site 1", OTHER: "site 2", TRAINING: "site 3"}
    sites = [RoundParticipant(user_id=id_, name=name, arrived=name in arrived) for id_, name in ids.items()]
    return GetRoundResponse(round=Round(participants=sites, updates_arrived=len(arrived), updates_expected=3))


def test_names_are_listed_and_many_are_counted() -> None:
    assert [list_words(["a", "b", "c"][:number]) for number in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert list_words(str(number) for number in range(12)) == "0, 1, 2, 3, 4 and 7 others"


def test_a_participant_says_what_it_does(server, messages) -> None:
    rounds = Rounds(server, evaluate=lambda model, round_: ({"accuracy": 1.0}, 7))
    rounds.send(round_started(1, 0))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    rounds.serve_model(0)
    rounds.take_update()
    rounds.send(round_started(2, 1, version=1, kind=ROUND_KIND_EVALUATE))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    rounds.serve_model(1)
    server.reply("SubmitMetrics", SubmitMetricsResponse())
    rounds.send(finished(3, version=10))
    rounds.result()
    assert messages() == [
        'Connected to there:1 as ""',
        "Round 1 of 20: training",
        "Round 1 of 20: accepted; waiting for the next round",
        "Round 2 of 20: evaluating",
        "Round 2 of 20: accepted; waiting for the next round",
        'Training "digits" is finished: the model has version 10',
    ]


def participate(server, *trainings):
    call = server.run(server.client.participate, lambda model, round_: (model, 1))
    server.reply("GetMyself", GetMyselfResponse(user=User(user_id=USER, name="site 1")))
    server.reply("GetTrainings", GetTrainingsResponse(trainings=trainings))
    _, rpc = server.stream("Subscribe")
    return call, rpc


def test_a_participant_says_what_it_is_registered_in(server, messages) -> None:
    call, rpc = participate(server, DIGITS)
    started = event_pb2.TrainingStarted(target_num_updates=20)
    rpc.send_response(Event(training_id=TRAINING, sequence=1, training_started=started))
    rpc.send_response(finished(2, version=20))
    call.result(10)
    assert messages()[:3] == [
        'Connected to there:1 as "site 1"',
        'Registered in 1 training: "digits"',
        'Training "digits" has started',
    ]


def test_a_participant_that_is_in_no_training_says_that_it_waits(server, messages) -> None:
    call, rpc = participate(server)
    rpc.send_response(finished(1))
    call.result(10)
    assert "waiting for an actor to register this participant" in messages()[1]


def test_long_transfers_are_logged_in_percent(server, messages) -> None:
    report = transfer_log(server.time, "Round 1 of 2: uploading")
    for done_bytes in range(0, 101, 10):
        report(done_bytes, 100)
        server.time.sleep_for(0.5)
    assert messages() == [f"Round 1 of 2: uploading {percent} %" for percent in (40, 80)]


def test_transfers_are_not_followed_where_nobody_reads_it(server) -> None:
    assert transfer_log(server.time, "uploading") is None


def wait(server, *events):
    """Waits for a training, up to the first call that the first event brings about."""
    call = server.run(server.client.wait, TRAINING)
    _, rpc = server.stream("Subscribe")
    for event in events:
        rpc.send_response(event)
    return call, rpc


def end(server, call, rpc, sequence):
    rpc.send_response(finished(sequence))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    assert call.result(10) == DIGITS


def test_an_actor_reads_whom_a_round_waits_for(server, messages) -> None:
    call, rpc = wait(server, round_started(1, 0))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    server.reply("GetRound", three_sites())
    until(lambda: len(messages()) == 1)
    for number, user in enumerate((USER, OTHER, TRAINING), start=1):
        rpc.send_response(accepted(number + 1, user, number))
        until(lambda number=number: len(messages()) == number + 1)
        server.time.sleep_for(progress.ARRIVAL_SECONDS)
    rpc.send_response(
        Event(training_id=TRAINING, sequence=5, round_closed=RoundClosed(num_updates=3, metrics={"loss": 0.25}))
    )
    rpc.send_response(round_started(6, 1, version=1, kind=ROUND_KIND_EVALUATE))
    server.reply("GetRound", three_sites("site 1", "site 3"))
    end(server, call, rpc, 7)
    assert messages() == [
        "Round 1 of 20: waiting for site 1, site 2 and site 3",
        "Round 1 of 20: 1 of 3 are in; waiting for site 2 and site 3",
        "Round 1 of 20: 2 of 3 are in; waiting for site 3",
        "Round 1 of 20: aggregating",
        "Round 1 of 20 is done with 3 submissions: loss 0.25",
        "Round 2 of 20, evaluation: 2 of 3 are in; waiting for site 2",
    ]


def heartbeat(sequence):
    return Event(training_id=TRAINING, sequence=sequence, heartbeat=event_pb2.Heartbeat(sequence=sequence))


def test_after_a_silence_an_actor_reads_who_is_still_missing_once(server, messages) -> None:
    call, rpc = wait(server, round_started(1, 0), accepted(2, USER, 1), accepted(3, OTHER, 2))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    server.reply("GetRound", three_sites())
    for _ in range(2):
        rpc.send_response(heartbeat(3))
        server.reply("GetRound", three_sites("site 1", "site 2"))
    end(server, call, rpc, 4)
    assert messages() == [
        "Round 1 of 20: waiting for site 1, site 2 and site 3",
        "Round 1 of 20: 1 of 3 are in; waiting for site 2 and site 3",
        "Round 1 of 20: 2 of 3 are in; waiting for site 3",
    ]


def test_an_actor_reads_that_a_training_is_not_started(server, messages) -> None:
    call, rpc = wait(server, heartbeat(0))
    initial = Training(state=TRAINING_STATE_INITIAL, spec=TrainingSpec(name="digits"))
    server.reply("GetTraining", GetTrainingResponse(training=initial))
    end(server, call, rpc, 1)
    assert messages() == ['Training "digits" is not started yet']


def test_a_participant_that_waits_reads_the_round_only(server, messages) -> None:
    call, rpc = wait(server, round_started(1, 3, kind=ROUND_KIND_SWAG))
    server.fail("GetTraining", error_status(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND"))
    server.fail("GetRound", error_status(grpc.StatusCode.PERMISSION_DENIED, "NOT_ACTOR"))
    end(server, call, rpc, 2)
    assert messages() == ["Round 4"]


def test_waiting_makes_no_calls_where_nobody_reads_it(server) -> None:
    call, rpc = wait(server, round_started(1, 0), accepted(2, USER, 1), heartbeat(2))
    end(server, call, rpc, 3)


def test_the_command_prints_a_line_for_each_message(server, command) -> None:
    call = command("training", "wait", TRAINING)
    _, rpc = server.stream("Subscribe")
    rpc.send_response(round_started(1, 0))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    server.reply("GetRound", three_sites("site 2"))
    rpc.send_response(finished(2))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    result = done(call)
    assert result.stderr == "Round 1 of 20: 1 of 3 are in; waiting for site 1 and site 3\n"
    assert "digits" in result.stdout
    assert logging.getLogger("fedround_client").handlers == []


def test_the_command_prints_nothing_but_json_where_json_is_asked_for(server, command) -> None:
    call = command("training", "wait", TRAINING, "--format", "json")
    _, rpc = server.stream("Subscribe")
    rpc.send_response(round_started(1, 0))
    rpc.send_response(finished(2))
    server.reply("GetTraining", GetTrainingResponse(training=DIGITS))
    result = done(call)
    assert result.stderr == ""
    assert json.loads(result.stdout)["training_id"] == TRAINING


def test_on_a_terminal_one_line_changes_and_warnings_stay(monkeypatch, capsys) -> None:
    said: list[str] = []
    monkeypatch.setattr(live, "live_line", lambda text: nullcontext(said.append))
    logger = logging.getLogger("fedround_client.test")
    with live.live_messages("waiting"):
        logger.info("Round 1 of 2: waiting for %s", "site 1")
        logger.warning("Trying again")
    assert said == ["Round 1 of 2: waiting for site 1"]
    assert capsys.readouterr().err == "Trying again\n"
