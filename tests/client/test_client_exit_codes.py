"""The exit codes of `fedround training wait` and `watch`, which scripts read."""

import json

import grpc
import pytest

from client.scripted import MODEL, OK, TRAINING, UNAVAILABLE, done
from fedround.v1 import event_pb2
from fedround.v1.event_pb2 import Event, TrainingFinished, TrainingRemoved
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ERROR,
    GetTrainingResponse,
    Training,
    TrainingError,
)
from fedround_client import FedroundError, TrainingFailed
from fedround_client.exit_codes import code_of_error

pytestmark = pytest.mark.timeout(30)

BUDGET = "PRIVACY_BUDGET"
FINISHED = TrainingFinished(model_id=MODEL, model_version=5)
ENDS = {
    "completed": (0, {"training_finished": FINISHED}, Training(state=TRAINING_STATE_COMPLETED)),
    "no more patience": (
        0,
        {"training_finished": TrainingFinished(stopped_early=True)},
        Training(state=TRAINING_STATE_COMPLETED),
    ),
    "failed": (
        4,
        {"training_failed": event_pb2.TrainingFailed(reason="DEADLINE_MISSED", message="no update")},
        Training(state=TRAINING_STATE_ERROR, error=TrainingError(reason="DEADLINE_MISSED", message="no update")),
    ),
    "stopped": (
        5,
        {"training_finished": TrainingFinished(stopped=True)},
        Training(state=TRAINING_STATE_COMPLETED, stopped=True),
    ),
    "budget": (
        6,
        {"training_finished": TrainingFinished(stopped_early=True, reason=BUDGET)},
        Training(state=TRAINING_STATE_COMPLETED, error=TrainingError(reason=BUDGET)),
    ),
    "removed": (7, {"training_removed": TrainingRemoved()}, None),
}


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize("end", ENDS)
def test_waiting(server, command, end, form):
    code, payload, training = ENDS[end]
    call = command("training", "wait", TRAINING, "--format", form)
    server.stream("Subscribe")[1].send_response(Event(training_id=TRAINING, sequence=3, **payload))
    if training is not None:
        server.reply("GetTraining", GetTrainingResponse(training=training))
    result = done(call, code)
    if form == "json" and end in ("failed", "removed"):
        assert json.loads(result.stderr)["reason"] in ("DEADLINE_MISSED", "TRAINING_REMOVED")
    elif form == "json":
        assert json.loads(result.stdout)["state"] == "TRAINING_STATE_COMPLETED"


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize("end", ENDS)
def test_watching(server, command, end, form):
    code, payload, _ = ENDS[end]
    call = command("training", "watch", TRAINING, "--format", form)
    server.stream("Subscribe")[1].send_response(Event(training_id=TRAINING, sequence=3, **payload))
    assert len(done(call, code).stdout.splitlines()) == 1


def test_a_timeout(server, command):
    call = command("training", "wait", TRAINING, "--timeout", 5, "--format", "json")
    server.stream("Subscribe")
    server.alarm_in(5)
    server.time.sleep_for(5)
    error = json.loads(done(call, 8).stderr)
    assert (error["code"], error["reason"]) == ("DEADLINE_EXCEEDED", "TIMEOUT")


def test_a_participant_that_is_removed(server, command):
    call = command("training", "watch", TRAINING, "--format", "json")
    _, rpc = server.stream("Subscribe")
    rpc.terminate(*OK)
    assert json.loads(done(call, 1).stderr)["reason"] == "CLIENT_REMOVED"


def test_other_errors_and_wrong_command_lines(server, command):
    assert done(command("training", "wait"), 2).exit_code == 2
    call = command("training", "wait", "digits")
    server.fail("GetTrainings", UNAVAILABLE)
    assert "error: " in done(call, 1).stderr


def test_errors_of_other_commands_that_run_trainings():
    # Such as the demo and simulations.
    assert code_of_error(TrainingFailed(grpc.StatusCode.ABORTED, "PARTICIPANTS_FAILED", "no")) == 4
    assert code_of_error(FedroundError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "no")) == 1
    assert code_of_error(OSError()) == 1
