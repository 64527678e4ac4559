"""`fedround training replay`, and the call behind it."""

import json

import grpc
import pytest

from client.scripted import OTHER, TRAINING, USER, done, error_status
from fedround.v1.audit_pb2 import ReplayRoundResponse
from fedround.v1.training_pb2 import GetTrainingResponse, Training

pytestmark = pytest.mark.timeout(30)

FOUND = GetTrainingResponse(training=Training(training_id=TRAINING, round=2))


def answer(recorded="ab", replayed="ab", **fields):
    return ReplayRoundResponse(
        model_version=3, recorded_sha256=recorded, replayed_sha256=replayed, num_updates=5, **fields
    )


def test_all_rounds_are_replayed(server, command):
    call = command("training", "replay", TRAINING)
    server.reply("GetTraining", FOUND)
    first = server.reply("ReplayRound", answer(distance=0.0))
    second, third = (
        server.fail("ReplayRound", error_status(grpc.StatusCode.FAILED_PRECONDITION, "REPLAY_IMPOSSIBLE", text, cause))
        for text, cause in (
            ("the files of the updates are not stored any more", {"cause": "KEEP_UPDATE_ROUNDS"}),
            # Such rounds are left out.
            ("round 2 has made no version", {"cause": "NO_VERSION"}),
        )
    )
    header, *rows = done(call).stdout.splitlines()
    assert header.split() == ["ROUND", "VERSION", "UPDATES", "RECORDED", "RESULT", "DISTANCE"]
    assert rows[0].split() == ["1", "3", "5", "ab", "the", "same", "0"]
    assert rows[1].split()[:4] == ["2", "not", "replayed:", "the"]
    assert len(rows) == 2
    assert [request.round for request in (first, second, third)] == [0, 1, 2]


def test_a_version_that_differs_is_an_error(server, command):
    call = command("training", "replay", TRAINING, "--round", "2", "--format", "json")
    server.reply("GetTraining", FOUND)
    server.reply("ReplayRound", answer("ab", "cd", distance=0.5))
    (row,) = json.loads(done(call, 1).stdout)
    assert row == {
        "round": 2,
        "version": 3,
        "updates": 5,
        "result": "differs",
        "distance": 0.5,
        "recorded_sha256": "ab",
        "replayed_sha256": "cd",
    }


def test_participants_are_left_out(server, command):
    call = command("training", "replay", TRAINING, "1", "--without", USER, "--without", OTHER)
    server.reply("GetTraining", FOUND)
    request = server.reply("ReplayRound", answer("ab", "cd"))
    assert "computed" in done(call).stdout
    assert sorted(request.without_client_ids) == sorted([USER, OTHER])


@pytest.mark.parametrize("options", [(), ("1", "--without", USER)])
def test_a_name_without_a_new_model_is_refused(server, command, options):
    call = command("training", "replay", TRAINING, "--model-name", "others", *options)
    assert "a new model is made only with --without" in " ".join(done(call, 2).stderr.split())
