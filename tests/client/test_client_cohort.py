"""Cohorts, labels and waiting, as participants, actors and admins see them."""

import json
import logging

import grpc
import numpy as np
import pytest

from client.rounds import Rounds, finished
from client.scripted import MODEL, OK, OTHER, TRAINING, USER, done, error_status
from fedround.v1 import event_pb2
from fedround.v1.event_pb2 import Event, TrainingStarted, WorkNotNeeded
from fedround.v1.model_pb2 import GetMetricsResponse, MetricReport
from fedround.v1.round_pb2 import (
    ROUND_STATE_OPEN,
    ROUND_STATE_PENDING,
    CohortDraw,
    GetRoundResponse,
    Round,
    RoundParticipant,
)
from fedround.v1.training_pb2 import (
    TRAINING_STATE_ONGOING,
    CreateTrainingResponse,
    GetTrainingResponse,
    StartTrainingResponse,
    Training,
    TrainingSpec,
)
from fedround.v1.user_pb2 import CreateUserResponse, GetUserResponse, UpdateUserResponse, User
from fedround_client import Cohort, RoundPolicy
from fedround_client.attributes import own_attributes
from fedround_client.progress import awaited_text

pytestmark = pytest.mark.timeout(30)

STATE = {"w": np.zeros(3, np.float32)}
WAITING = Training(
    training_id=TRAINING,
    state=TRAINING_STATE_ONGOING,
    spec=TrainingSpec(name="digits", target_num_updates=4, cohort=Cohort(min_available=5)),
)
WAITING.start_time.FromSeconds(1_800_000_000)


def pending(*absent):
    """A round that waits for five participants; these are not connected."""
    found = Round(
        training_id=TRAINING,
        state=ROUND_STATE_PENDING,
        waiting_for=f"participants: {5 - len(absent)} of 5 connected",
        num_connected=5 - len(absent),
        num_registered=5,
        not_connected=[RoundParticipant(name=name) for name in absent],
    )
    return GetRoundResponse(round=found)


PENDING = pending("site 2", "site 4")


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, "fedround_client")
    return lambda: [record.getMessage() for record in caplog.records]


def not_needed(sequence, number=0):
    released = WorkNotNeeded(round=number, num_updates=2, num_participants=3)
    return Event(training_id=TRAINING, sequence=sequence, work_not_needed=released)


def test_a_participant_that_comes_too_late_reads_that_others_were_enough(server, messages):
    rounds = Rounds(server)
    metadata = {"num_updates": "2", "num_participants": "3"}
    rounds.run_round(1, 0, status=error_status(grpc.StatusCode.FAILED_PRECONDITION, "ROUND_NOT_OPEN", "no", metadata))
    # The event says the same again.
    rounds.send(not_needed(2))
    rounds.run_round(3, 1)
    rounds.send(not_needed(4, 5), finished(5))
    assert rounds.result().rounds == 1
    late = [text for text in messages() if "came too late" in text]
    assert late == [
        "Round 1: came too late, 2 of 3 were enough (ROUND_NOT_OPEN); waiting for the next round",
        "Round 6: came too late, 2 of 3 were enough; waiting for the next round",
    ]


def test_a_participant_says_what_it_is(server):
    rounds = Rounds(server, attributes={"num_examples": "6000"})
    sent = dict(rounds.request.attributes)
    assert sent == {**own_attributes(), "num_examples": "6000"}
    assert sent.keys() == {"sdk", "python", "platform", "num_examples"}
    rounds.send(finished(1))
    rounds.result()


def created(server, **options):
    """Returns the spec that create_training sends."""
    call = server.run(server.client.create_training, model_id=MODEL, name="n", target_num_updates=1, **options)
    rpc = server.upload("CreateTraining")
    spec = rpc.take_request().spec
    rpc.terminate(CreateTrainingResponse(training=WAITING), *OK)
    call.result(10)
    return spec


@pytest.mark.parametrize(
    ("options", "seconds", "fraction"),
    [
        ({}, 0, 0),
        ({"min_updates": 2}, 5, 0.1),
        ({"min_updates": 2, "wait_after_min": 0}, 0, 0),
        ({"min_updates": 2, "wait_after_min": 30}, 30, 0),
    ],
)
def test_a_round_with_min_updates_waits_a_little_by_default(server, options, seconds, fraction):
    policy = created(server, **options).round_policy
    assert (policy.wait_after_min.seconds, policy.wait_fraction) == (seconds, fraction)


def test_a_cohort_and_a_policy_of_evaluations_are_sent_as_they_are(server):
    cohort, policy = Cohort(fraction=0.1, labels={"gpu": "yes"}), RoundPolicy(min_updates=1)
    spec = created(server, cohort=cohort, evaluation_policy=policy)
    assert (spec.cohort, spec.evaluation_policy) == (cohort, policy)
    assert not created(server).HasField("cohort")


def test_wait_says_how_many_are_connected(server, messages):
    call = server.run(server.client.wait, TRAINING)
    _, rpc = server.stream("Subscribe")
    rpc.send_response(Event(training_id=TRAINING, sequence=1, training_started=TrainingStarted()))
    server.reply("GetTraining", GetTrainingResponse(training=WAITING))
    server.reply("GetRound", PENDING)
    rpc.send_response(Event(training_id=TRAINING, sequence=1, heartbeat=event_pb2.Heartbeat(sequence=1)))
    server.reply("GetRound", pending("site 4"))
    rpc.send_response(finished(2))
    server.reply("GetTraining", GetTrainingResponse(training=WAITING))
    call.result(10)
    assert messages() == [
        "Round 1 of 4: waiting for participants: 3 of 5 connected; not connected: site 2 and site 4",
        "Round 1 of 4: waiting for participants: 4 of 5 connected; not connected: site 4",
    ]


def test_who_is_not_listed_is_counted():
    found = Round(num_connected=3, num_registered=2003, waiting_for="participants: 3 of 5 connected")
    for number in range(1000):
        found.not_connected.add(name=f"site {number}")
    assert awaited_text(found) == (
        "participants: 3 of 5 connected; not connected: site 0, site 1, site 2, site 3, site 4 and 1995 others"
    )


def test_show_and_start_say_how_many_are_connected(server, command):
    call = command("training", "show", TRAINING)
    server.reply("GetTraining", GetTrainingResponse(training=WAITING))
    server.reply("GetRound", PENDING)
    lines = [line.split(maxsplit=2) for line in done(call).stdout.splitlines()]
    assert ["waiting", "for", "participants: 3 of 5 connected"] in lines
    assert ["not", "connected", "site 2, site 4"] in lines
    assert not any(line[0] == "arrived" for line in lines)
    call = command("training", "start", TRAINING)
    server.reply("StartTraining", StartTrainingResponse(training=WAITING))
    assert "ongoing" in done(call).stdout


def test_watch_says_how_many_are_connected(server, command):
    call = command("training", "watch", TRAINING)
    _, rpc = server.stream("Subscribe")
    started = TrainingStarted(target_num_updates=4)
    rpc.send_response(Event(training_id=TRAINING, sequence=1, training_started=started))
    server.reply("GetTraining", GetTrainingResponse(training=WAITING))
    server.reply("GetRound", PENDING)
    # Only what has changed is printed.
    for found in (PENDING, pending("site 4"), GetRoundResponse(round=Round(state=ROUND_STATE_OPEN))):
        rpc.send_response(Event(training_id=TRAINING, sequence=1, heartbeat=event_pb2.Heartbeat(sequence=1)))
        server.reply("GetRound", found)
    rpc.send_response(not_needed(2))
    rpc.send_response(finished(3))
    first, second, third, _ = done(call).stdout.splitlines()
    waiting = "round 1 of 4: waiting for participants:"
    assert first.endswith(f"started: 4 versions to make; {waiting} 3 of 5 connected; not connected: site 2 and site 4")
    assert second.endswith(f"  {waiting} 4 of 5 connected; not connected: site 4")
    assert third.endswith("round 1 of 4: 2 of 3 are enough, the others are told that they are free")


def test_a_round_shows_its_draw_and_whose_work_was_left_out(server, command):
    call = command("training", "round", TRAINING)
    slow = RoundParticipant(user_id=USER, name="slow", rounds_left_out=7, attributes={"sdk": "fedround 0.1.0"})
    draw = CohortDraw(seed=42, attempt=1, num_eligible=30, num_needed=10, num_chosen=15)
    found = Round(training_id=TRAINING, state=ROUND_STATE_OPEN, participants=[slow], draw=draw)
    server.reply("GetRound", GetRoundResponse(round=found))
    server.reply("GetTraining", GetTrainingResponse(training=WAITING))
    text = done(call).stdout
    assert "15 of 30 were asked, 10 are needed (seed 42)" in text
    header, row = text.splitlines()[-2:]
    assert row[header.index("LEFT OUT") :].split() == ["7", "sdk=fedround", "0.1.0"]


def test_training_create_has_options_for_cohorts(server, command):
    options = "--fraction 0.1 --min-available 3 --over-selection 1.5 --label gpu=yes --label site=a=b"
    options += " --available-only --cohort-seed 7 --min-updates 2 --wait-after-min 9 --evaluation-min-updates 0"
    call = command(
        "training", "create", "--model-id", MODEL, "--name", "n", "--target-num-updates", 1, *options.split()
    )
    rpc = server.upload("CreateTraining")
    spec = rpc.take_request().spec
    rpc.terminate(CreateTrainingResponse(training=WAITING), *OK)
    done(call)
    assert spec.cohort == Cohort(
        fraction=0.1,
        min_available=3,
        over_selection=1.5,
        labels={"gpu": "yes", "site": "a=b"},
        available_only=True,
        seed=7,
    )
    assert (spec.round_policy.min_updates, spec.round_policy.wait_after_min.seconds) == (2, 9)
    assert spec.HasField("evaluation_policy")
    assert (spec.evaluation_policy.min_updates, spec.evaluation_policy.HasField("wait_after_min")) == (0, False)


@pytest.mark.parametrize("options", ["--label gpu", "--label gpu=a --label gpu=b", "--label =x", "--wait-after-min 3"])
def test_wrong_options_for_cohorts_are_rejected(command, options):
    call = command(
        "training", "create", "--model-id", MODEL, "--name", "n", "--target-num-updates", 1, *options.split()
    )
    done(call, 2)


LABELLED = User(user_id=USER, name="site 1", role=3, labels={"gpu": "no", "site": "berlin", "old": ""})


def test_labels_are_added_and_removed(server, command):
    call = command("user", "label", USER, "gpu=yes", "--remove", "old", "--format", "json")
    server.reply("GetUser", GetUserResponse(user=LABELLED))
    request = server.reply("UpdateUser", UpdateUserResponse(user=LABELLED))
    assert dict(request.labels) == {"gpu": "yes", "site": "berlin"}
    assert json.loads(done(call).stdout)["labels"] == dict(LABELLED.labels)


def test_a_label_that_does_not_exist_cannot_be_removed(server, command):
    call = command("user", "label", USER, "--remove", "colour")
    server.reply("GetUser", GetUserResponse(user=LABELLED))
    assert "no label 'colour'" in done(call, 2).stderr


def test_labels_are_shown_and_given_to_new_users(server, command):
    call = command("user", "show", USER)
    server.reply("GetUser", GetUserResponse(user=LABELLED))
    assert "gpu=no, old=, site=berlin" in done(call).stdout
    call = command("user", "create", "site 2", "--label", "gpu=yes")
    request = server.reply("CreateUser", CreateUserResponse(user=LABELLED, token="t"))
    assert dict(request.labels) == {"gpu": "yes"}
    done(call)


def test_metrics_say_over_how_many_participants_a_mean_was_made(server, command):
    call = command("metrics", MODEL)
    mean = MetricReport(training_id=TRAINING, num_reporters=2, num_participants=3, reporter_ids=[USER, OTHER])
    server.reply("GetMetrics", GetMetricsResponse(reports=[mean]))
    header, row = done(call).stdout.splitlines()
    assert row[header.index("OVER") :].strip() == "2 of 3"
