import logging
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.timestamp_pb2 import Timestamp

from client.rounds import Rounds, finished, plus_one, round_started
from client.scripted import MODEL, OK, OTHER, TRAINING, UNAVAILABLE, USER, cut, is_cancelled, refusal, until
from fedround.v1 import event_pb2
from fedround.v1.aggregation_pb2 import Aggregation, FedProx
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, Event
from fedround.v1.round_pb2 import GetUploadResponse, SubmitMetricsResponse
from fedround_client import (
    Participation,
    RemovedFromTraining,
    Round,
    TokenInvalid,
    TrainingFailed,
    UnsupportedRound,
    Update,
    participant,
)

pytestmark = pytest.mark.timeout(30)


def test_two_rounds_to_the_end(server):
    rounds = Rounds(server)
    for number in range(2):
        spec, weights = rounds.play(number + 1, number)
        assert (spec.training_id, spec.round, spec.num_examples) == (TRAINING, number, 10)
        assert dict(spec.metrics) == {"loss": 0.25}
        np.testing.assert_array_equal(weights, np.full(3, number + 1))
    rounds.send(finished(3, version=2))
    assert rounds.result() == Participation(TRAINING, MODEL, 2, rounds=2)


def test_freed_memory_is_kept(server, monkeypatch):
    kept = []
    monkeypatch.setattr(participant, "keep_freed", lambda *sizes: kept.append(sizes))
    rounds = Rounds(server)
    rounds.send(finished(1))
    rounds.result()
    assert kept == [(participant.MAX_FREED_BLOCK, participant.TRIM_THRESHOLD)]


def test_the_function_gets_the_round_and_may_return_tuples(server):
    seen = []

    def train(model, round_):
        seen.append(round_)
        return (model, 5) if round_.number == 0 else (model, 6, {"a": 1.0})

    rounds = Rounds(server, train)
    event = round_started(1, 0, aggregation=Aggregation(fed_prox=FedProx(mu=0.5)), metric_names=["accuracy"])
    event.round_started.deadline.FromDatetime(datetime(2030, 1, 2, tzinfo=UTC))
    rounds.send(event)
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert rounds.take_update()[0].num_examples == 5
    spec, _ = rounds.play(2, 1)
    assert (spec.num_examples, dict(spec.metrics)) == (6, {"a": 1.0})
    rounds.send(finished(3))
    rounds.result()
    assert seen[0] == Round(TRAINING, 0, "TRAIN", 0, datetime(2030, 1, 2, tzinfo=UTC), 0.5, ("accuracy",))
    assert seen[1] == Round(TRAINING, 1, "TRAIN", 1)


def test_a_repeated_round_is_trained_for_once(server):
    seen = []

    def train(model, round_):
        seen.append((round_.number, round_.attempt))
        return plus_one(model, round_)

    rounds = Rounds(server, train)
    rounds.send(round_started(1, 0, attempt=2))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.take_update()
    extended = event_pb2.RoundExtended(round=0, attempt=3)
    rounds.send(Event(training_id=TRAINING, sequence=2, round_extended=extended))
    rounds.play(3, 1)
    rounds.send(finished(4))
    assert rounds.result().rounds == 2
    assert seen == [(0, 2), (1, 1)]


def test_a_round_that_was_submitted_to_is_not_trained_for_again(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, submitted=True))
    rounds.play(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_an_evaluation_reuses_the_bytes_but_not_the_arrays_of_a_model(server):
    def evaluate(model, round_):
        value = float(model["w"][0])
        model["w"] += 100  # the user's own copy
        return {"accuracy": value}, 7

    rounds = Rounds(server, evaluate=evaluate)
    rounds.send(round_started(1, 0, version=4, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(4)
    report = server.reply("SubmitMetrics", SubmitMetricsResponse())
    assert (report.training_id, report.round, dict(report.metrics), report.num_examples) == (
        TRAINING,
        0,
        {"accuracy": 4.0},
        7,
    )
    rounds.send(round_started(2, 1, version=4))
    rounds.training_is_at(1)
    np.testing.assert_array_equal(rounds.take_update()[1], [5, 5, 5])  # without another download
    rounds.send(finished(3))
    assert rounds.result().rounds == 2


def test_metrics_are_repeated_until_the_server_is_back(server):
    rounds = Rounds(server, evaluate=lambda model, round_: ({"accuracy": 1.0}, 7))
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    for _ in range(12):
        server.refuse("SubmitMetrics", UNAVAILABLE)
    server.reply("SubmitMetrics", SubmitMetricsResponse())
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


def test_tensors_for_torch(server):
    def train(model, round_):
        assert isinstance(model["w"], torch.Tensor)
        return model, 1

    rounds = Rounds(server, train, framework="torch")
    rounds.play(1, 0)
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


def test_a_restarted_server_is_resumed_behind_the_last_event(server):
    rounds = Rounds(server)
    rounds.play(1, 0)
    cut(rounds.rpc)
    server.stream("Subscribe")[1].terminate(*UNAVAILABLE)
    rounds.subscribe()
    assert dict(rounds.request.resume_after_sequence) == {TRAINING: 1}
    rounds.send(round_started(1, 0))  # once more: at least once is the promise
    rounds.play(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 2


def test_an_upload_outlasts_a_server_that_is_down_for_long(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.take_update(UNAVAILABLE)
    for _ in range(30):
        server.refuse("GetUpload", UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=0))
    rounds.take_update()
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("ALREADY_EXISTS", "UPDATE_EXISTS"),
        ("FAILED_PRECONDITION", "ROUND_NOT_OPEN"),
        ("FAILED_PRECONDITION", "TRAINING_ENDED"),
        ("PERMISSION_DENIED", "NOT_IN_COHORT"),
        ("NOT_FOUND", "TRAINING_NOT_FOUND"),
    ],
)
def test_what_comes_too_late_is_logged_and_the_next_round_played(server, caplog, code, reason):
    rounds = Rounds(server)
    rounds.play(1, 0, status=refusal(grpc.StatusCode[code], reason))
    rounds.play(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert reason in record.getMessage()


def test_another_report_after_a_restart_is_logged_and_the_next_round_played(server):
    rounds = Rounds(server, evaluate=lambda model, round_: ({"accuracy": 1.0}, 7))
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    server.refuse("SubmitMetrics", refusal(grpc.StatusCode.ALREADY_EXISTS, "METRICS_EXIST"))
    rounds.play(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_model_that_lost_its_file_belongs_to_a_round_that_is_over(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    server.stream("DownloadModel")[1].terminate(*refusal(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
    rounds.play(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_round_that_is_over_is_not_trained_for(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(2)
    rounds.play(2, 2)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_nobody_asks_whether_a_round_is_over_that_has_just_begun(server):
    rounds = Rounds(server)
    rounds.play(1, 0)
    server.alarm_in(60)
    server.time.sleep_for(1)
    rounds.send(round_started(2, 1), round_started(3, 2))
    rounds.serve_model(1)
    # So long it is busy: the third round may be over.
    server.time.sleep_for(1.5)
    rounds.take_update()
    rounds.training_is_at(3)
    rounds.send(finished(4))
    assert rounds.result().rounds == 2


def test_what_a_stream_begins_with_may_be_old_however_long_it_took(server):
    rounds = Rounds(server)
    server.alarm_in(60)
    server.time.sleep_for(5)
    rounds.play(1, 0)
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


@pytest.mark.parametrize(
    ("code", "reason"), [("INVALID_ARGUMENT", "UPDATE_NOT_FINITE"), ("UNAUTHENTICATED", "TOKEN_INVALID")]
)
def test_a_refused_update_ends_it(server, code, reason):
    rounds = Rounds(server)
    rounds.play(1, 0, status=refusal(grpc.StatusCode[code], reason))
    assert rounds.error().reason == reason
    until(lambda: is_cancelled(rounds.rpc))


def test_a_bad_token_ends_it_at_once(server):
    call = server.run(server.client.participate, plus_one)
    server.refuse("GetMyself", refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"))
    assert type(call.exception(10)) is TokenInvalid


def test_an_error_of_the_function_is_raised_as_it_is(server):
    def train(model, round_):
        raise ZeroDivisionError("mine")

    rounds = Rounds(server, train)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert isinstance(rounds.error(), ZeroDivisionError)
    until(lambda: is_cancelled(rounds.rpc))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"w": np.zeros(3, np.float32), "b": np.zeros(1)}, "it returned a dict"),
        (None, "it returned a NoneType"),
        (({"w": np.zeros(3, np.float32)},), "it returned a tuple of 1"),
        (({"w": np.zeros(3, np.float32)}, 10.0), "num_examples must be a whole number, not 10.0"),
        (({"w": np.zeros(3, np.float32)}, "ten"), "num_examples must be a whole number, not 'ten'"),
    ],
)
def test_a_result_that_is_none_is_told_at_once(server, result, text):
    rounds = Rounds(server, lambda model, round_: result)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    error = rounds.error()
    assert isinstance(error, TypeError)
    assert text in str(error)


def test_metrics_that_are_no_numbers_are_told_at_once(server):
    rounds = Rounds(server, lambda model, round_: (model, 1, {"loss": "low"}))
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert isinstance(rounds.error(), TypeError)


@pytest.mark.parametrize("result", [{"accuracy": 1.0}, None, ({"accuracy": 1.0}, 1, 2), (1, {"accuracy": 1.0})])
def test_an_evaluation_that_is_none_is_told_at_once(server, result):
    rounds = Rounds(server, evaluate=lambda model, round_: result)
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    error = rounds.error()
    assert isinstance(error, TypeError)
    assert "evaluate must return (metrics, num_examples)" in str(error)


@pytest.mark.parametrize("count", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_all_kinds_count_examples(count):
    assert int(Update({}, count).num_examples) == 3


def test_a_failed_training_raises(server):
    rounds = Rounds(server)
    failed = event_pb2.TrainingFailed(reason="DEADLINE_MISSED", message="nobody came")
    rounds.send(Event(training_id=TRAINING, sequence=1, training_failed=failed))
    error = rounds.error()
    assert type(error) is TrainingFailed
    assert (error.reason, error.message) == ("DEADLINE_MISSED", "nobody came")


def test_removal_of_oneself_raises_and_of_others_does_not(server):
    rounds = Rounds(server)
    for sequence, client_id in ((1, OTHER), (2, USER)):
        removed = event_pb2.ClientRemoved(client_id=client_id)
        rounds.send(Event(training_id=TRAINING, sequence=sequence, client_removed=removed))
    error = rounds.error()
    assert type(error) is RemovedFromTraining
    assert error.metadata == {"training_id": TRAINING}


@pytest.mark.parametrize(("kind", "text"), [(ROUND_KIND_EVALUATE, "evaluate function"), (99, "newer SDK")])
def test_a_round_that_it_cannot_do_raises_what_is_missing(server, kind, text):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, kind=kind))
    rounds.training_is_at(0)
    error = rounds.error()
    assert type(error) is UnsupportedRound
    assert text in error.message


def test_a_deadline_that_is_no_time_ends_it(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, deadline=Timestamp(seconds=2**62)))
    rounds.training_is_at(0)
    error = rounds.error()
    assert isinstance(error, UnsupportedRound)
    assert "deadline that is not a valid time" in str(error)


def test_all_trainings_leave_out_what_was_over_before(server):
    rounds = Rounds(server, training_id=None, over=[OTHER])
    assert rounds.request.training_id == ""
    rounds.send(round_started(4, 0, training_id=OTHER), finished(5, OTHER))
    rounds.play(1, 0)
    rounds.send(finished(2))
    assert rounds.result() == Participation(TRAINING, MODEL, 9, rounds=1)


def test_without_an_end_it_goes_from_training_to_training(server):
    rounds = Rounds(server, training_id=None, until_finished=False)
    rounds.play(1, 0)
    failed = event_pb2.TrainingFailed(reason="DEADLINE_MISSED")
    rounds.send(finished(2), Event(training_id=OTHER, sequence=1, training_failed=failed))
    rounds.rpc.terminate(*OK)
    rounds.subscribe()
    assert dict(rounds.request.resume_after_sequence) == {TRAINING: 2, OTHER: 1}
    assert not rounds.call.done()
    rounds.rpc.terminate(*refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"))
    assert type(rounds.error()) is TokenInvalid


def test_an_expired_cursor_starts_again_at_the_current_round(server):
    rounds = Rounds(server)
    rounds.play(5, 0)
    cut(rounds.rpc)
    rounds.subscribe()
    rounds.rpc.terminate(*refusal(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"))
    rounds.subscribe()
    assert dict(rounds.request.resume_after_sequence) == {}
    rounds.play(1, 1)
    rounds.send(finished(2))
    assert rounds.result().rounds == 2
