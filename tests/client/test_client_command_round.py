"""`fedround training wait`, `watch` and `round`, and what they say of failures."""

import json

import numpy as np
import pytest

from client.scripted import MODEL, OTHER, TRAINING, USER, done, fields
from fedround.v1 import event_pb2
from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import GetRoundResponse, RejectedUpdate, Round, RoundParticipant, UpdateReport
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    GetTrainingResponse,
    ModelSelection,
    ParticipantFailure,
    Training,
    TrainingError,
    TrainingSpec,
)
from fedround_client import (
    to_safetensors,
)

pytestmark = pytest.mark.timeout(30)

FILE = to_safetensors({"w": np.ones(3, np.float32)})
SPEC = TrainingSpec(name="digits", target_num_updates=5, selection=ModelSelection(metric="accuracy"))
TRAINED = Training(training_id=TRAINING, spec=SPEC, best_version=3, best_value=0.75)
TRAINED.start_time.FromSeconds(1_800_000_000)


def test_training_wait_and_watch(server, command):
    finished = event_pb2.TrainingFinished(model_id=MODEL, model_version=5)
    event = Event(training_id=TRAINING, sequence=3, training_finished=finished)

    call = command("training", "wait", TRAINING)
    server.stream("Subscribe")[1].send_response(event)
    server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    assert TRAINING in done(call).stdout

    for form in ("table", "json"):
        call = command("training", "watch", TRAINING, "--format", form)
        server.stream("Subscribe")[1].send_response(event)
        (line,) = done(call).stdout.splitlines()
        if form == "json":
            assert json.loads(line)["training_finished"] == {
                "model_id": MODEL,
                "model_version": 5,
                "stopped_early": False,
                "stopped": False,
                "reason": "",
            }
        else:
            assert line == f"finished: version 5 of model {MODEL}"


def test_waiting_for_a_training_that_fails_says_why(server, command):
    call = command("training", "wait", TRAINING)
    failed = event_pb2.TrainingFailed(reason="DEADLINE_MISSED", message="no update arrived")
    server.stream("Subscribe")[1].send_response(Event(training_id=TRAINING, sequence=3, training_failed=failed))
    error = TrainingError(reason="DEADLINE_MISSED", message="no update arrived; missing: ward 7")
    server.reply("GetTraining", GetTrainingResponse(training=Training(error=error)))
    assert done(call, 4).stderr == "error: DEADLINE_MISSED: no update arrived; missing: ward 7\n"


def test_a_round_shows_missing_participants_and_rejected_updates(server, command):
    rejected = RejectedUpdate(reason="UPDATE_NOT_FINITE", count=3, message="tensor 'w' contains NaN or Inf")
    rejected.last_time.FromSeconds(1_800_000_000)
    missing = RoundParticipant(
        user_id=USER, name="ward 7", uploaded_bytes=4096, subscribed=True, rejected_updates=[rejected]
    )
    missing.missing_since_time.FromSeconds(1_799_999_000)
    missing.forecast_arrive_time.FromSeconds(1_800_000_900)
    arrived = RoundParticipant(user_id=OTHER, name="ward 8", arrived=True)
    found = Round(training_id=TRAINING, attempt=2, max_attempts=4, waiting_for="1 more of 2 updates")
    found.rejected_updates.append(rejected)
    found.participants.extend([missing, arrived])

    call = command("training", "round", TRAINING)
    server.reply("GetRound", GetRoundResponse(round=found))
    server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    head, people, reasons = done(call).stdout.split("\n\n")
    shown = fields(head)
    assert shown["round"] == "1 of 5: training, attempt 2 of 4"
    assert shown["missing"] == "ward 7 (4,096 bytes uploaded)"
    assert shown["waiting for"] == "1 more of 2 updates"
    assert USER not in head
    header, first, second = people.splitlines()
    assert " ".join(header.split()) == "NAME USER_ID ARRIVED MISSING SINCE LAST SEEN BYTES EXPECTED REJECTED"
    for cell in ("ward 7", USER, "now", "4096", "UPDATE_NOT_FINITE 3"):
        assert cell in first
    assert (OTHER in second, "now" in second) == (True, False)
    assert [line.split()[:2] for line in reasons.splitlines()] == [["REJECTED", "COUNT"], ["UPDATE_NOT_FINITE", "3"]]
    assert "contains NaN" in reasons

    call = command("training", "round", TRAINING, "--format", "json")
    server.reply("GetRound", GetRoundResponse(round=found))
    assert json.loads(done(call).stdout)["participants"][0]["rejected_updates"][0]["count"] == "3"


FAILURE = ParticipantFailure(
    participant_id=USER, participant_name="ward 7", reason="TRAIN_FAILED", message="CUDA out of memory"
)


def test_a_round_shows_what_the_aggregation_found_out(server, command):
    call = command("training", "round", TRAINING)
    reports = [
        UpdateReport(share=0.375, norm=10, cosine=-0.5, distance_rank=2, clip_scale=0.5, selected=True),
        UpdateReport(share=0, selected=False),
    ]
    found = Round(
        training_id=TRAINING,
        participants=[
            RoundParticipant(name=f"ward {number}", arrived=True, report=report)
            for number, report in enumerate(reports)
        ],
    )
    server.reply("GetRound", GetRoundResponse(round=found))
    server.reply("GetTraining", GetTrainingResponse())
    lines = [line.split() for line in done(call).stdout.splitlines()]
    place = lines.index(["UPDATE", "OF", "SHARE", "NORM", "COSINE", "RANK", "SCALE", "SELECTED"])
    assert lines[place + 1 : place + 3] == [
        ["ward", "0", "0.375", "10", "-0.5", "2", "0.5", "yes"],
        ["ward", "1", "0", "no"],
    ]


def test_a_round_shows_who_failed_and_why(server, command):
    call = command("training", "round", TRAINING)
    failed = RoundParticipant(user_id=USER, name="ward 7", failure=FAILURE)
    found = Round(training_id=TRAINING, num_failed=1, participants=[failed, RoundParticipant(name="ward 8")])
    server.reply("GetRound", GetRoundResponse(round=found))
    server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    head, _, failures = done(call).stdout.split("\n\n")
    shown = fields(head)
    assert shown["failed"] == "ward 7 (TRAIN_FAILED: CUDA out of memory)"
    assert shown["missing"] == "ward 8 (never connected)"
    header, row = failures.splitlines()
    assert header.split() == ["FAILED", "REASON", "SINCE", "MESSAGE"]
    assert all(cell in row for cell in ("ward 7", "TRAIN_FAILED", "CUDA out of memory"))


def test_a_training_shows_who_failed_and_why(server, command):
    call = command("training", "show", TRAINING)
    training = Training(training_id=TRAINING, state=TRAINING_STATE_COMPLETED, failures=[FAILURE])
    server.reply("GetTraining", GetTrainingResponse(training=training))
    assert fields(done(call).stdout)["failed"] == "ward 7 (TRAIN_FAILED: CUDA out of memory)"


FAILED = event_pb2.ParticipantFailed(
    round=2,
    participant_id=USER,
    participant_name="ward 7",
    reason="TRAIN_FAILED",
    message="CUDA out of memory",
    updates_arrived=1,
    updates_expected=2,
)
FINISHED = event_pb2.TrainingFinished(model_id=MODEL, model_version=5)


def subscribe(server):
    _, rpc = server.stream("Subscribe")
    rpc.send_response(Event(training_id=TRAINING, sequence=3, participant_failed=FAILED))
    rpc.send_response(Event(training_id=TRAINING, sequence=4, training_finished=FINISHED))


def test_waiting_tells_who_failed_and_why(server, command):
    call = command("training", "wait", TRAINING)
    subscribe(server)
    server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    assert "Participant ward 7 failed in round 3: TRAIN_FAILED: CUDA out of memory" in done(call).stderr


def test_watching_tells_who_failed_and_why(server, command):
    call = command("training", "watch", TRAINING)
    subscribe(server)
    server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    line = done(call).stdout.splitlines()[0]
    assert line == "round 3 of 5: ward 7 failed: TRAIN_FAILED: CUDA out of memory; 1 of 2 arrived"
