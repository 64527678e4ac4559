"""The event loop of a participant."""

import logging
import sys
import uuid

import grpc
import numpy as np
import pytest

import fedround_client
from client.rounds import Rounds, finished, plus_one, round_started
from client.scripted import MODEL, OK, OTHER, TRAINING, UNAVAILABLE, USER, cut, error_status, is_cancelled, until
from fedround.v1 import event_pb2
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, Event
from fedround.v1.round_pb2 import SubmitMetricsResponse
from fedround.v1.training_pb2 import (
    EVALUATION_NEVER,
    TRAINING_STATE_COMPLETED,
    GetTrainingResponse,
    Training,
    TrainingSpec,
)
from fedround_client import (
    AlreadyParticipating,
    Participation,
    RemovedFromTraining,
    TokenInvalid,
    TrainingFailed,
    UnsupportedRound,
    participant,
)
from fedround_client.retry import ATTEMPTS

pytestmark = pytest.mark.timeout(30)


def test_two_rounds_to_the_end(server):
    rounds = Rounds(server)
    for number in range(2):
        spec, weights = rounds.run_round(number + 1, number)
        assert (spec.training_id, spec.round, spec.num_examples) == (TRAINING, number, 10)
        assert dict(spec.metrics) == {"loss": 0.25}
        np.testing.assert_array_equal(weights, np.full(3, number + 1))
    rounds.send(finished(3, version=2))
    assert rounds.result() == Participation(TRAINING, MODEL, 2, rounds=2)


def test_participating_sets_up_the_allocator(server, monkeypatch):
    kept = []
    monkeypatch.setattr(participant, "keep_freed", lambda *sizes: kept.append(sizes))
    rounds = Rounds(server)
    rounds.send(finished(1))
    rounds.result()
    assert kept == [(participant.MAX_FREED_BLOCK, participant.TRIM_THRESHOLD)]


def test_a_repeated_round_is_trained_once(server):
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
    rounds.run_round(3, 1)
    rounds.send(finished(4))
    assert rounds.result().rounds == 2
    assert seen == [(0, 2), (1, 1)]


def test_a_submitted_round_is_not_trained_again(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, submitted=True))
    rounds.run_round(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_subscription_resumes_behind_the_last_event_after_a_restart(server):
    rounds = Rounds(server)
    rounds.run_round(1, 0)
    cut(rounds.rpc)
    server.stream("Subscribe")[1].terminate(*UNAVAILABLE)
    rounds.subscribe()
    assert dict(rounds.request.resume_after_sequence) == {TRAINING: 1}
    rounds.send(round_started(1, 0))  # once more: at least once is the promise
    rounds.run_round(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("ALREADY_EXISTS", "UPDATE_EXISTS"),
        ("FAILED_PRECONDITION", "UPDATE_SUPERSEDED"),
        ("FAILED_PRECONDITION", "ROUND_NOT_OPEN"),
        ("FAILED_PRECONDITION", "TRAINING_ENDED"),
        ("PERMISSION_DENIED", "NOT_IN_COHORT"),
        ("NOT_FOUND", "TRAINING_NOT_FOUND"),
    ],
)
def test_late_results_are_logged_and_the_next_round_is_run(server, caplog, code, reason):
    rounds = Rounds(server)
    rounds.run_round(1, 0, status=error_status(grpc.StatusCode[code], reason))
    rounds.run_round(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert reason in record.getMessage()


def test_a_second_report_is_logged_and_the_next_round_is_run(server):
    rounds = Rounds(server, evaluate=lambda model, round_: ({"accuracy": 1.0}, 7))
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    server.fail("SubmitMetrics", error_status(grpc.StatusCode.ALREADY_EXISTS, "METRICS_EXIST"))
    rounds.run_round(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_model_without_a_file_means_that_the_round_is_over(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    server.stream("DownloadModel")[1].terminate(*error_status(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
    rounds.run_round(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_round_that_is_over_is_not_trained(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(2)
    rounds.run_round(2, 2)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_live_round_is_not_checked_for_being_over(server):
    rounds = Rounds(server)
    rounds.run_round(1, 0)
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


def test_the_first_event_of_a_stream_is_never_live(server):
    rounds = Rounds(server)
    server.alarm_in(60)
    server.time.sleep_for(5)
    rounds.run_round(1, 0)
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


@pytest.mark.parametrize(
    ("code", "reason"), [("INVALID_ARGUMENT", "UPDATE_NOT_FINITE"), ("UNAUTHENTICATED", "TOKEN_INVALID")]
)
def test_a_rejected_update_ends_the_participation(server, code, reason):
    rounds = Rounds(server)
    rounds.run_round(1, 0, status=error_status(grpc.StatusCode[code], reason, "the message"))
    report = rounds.reported()
    assert (report.reason, report.message) == (reason, "the message")
    assert rounds.error().reason == reason
    until(lambda: is_cancelled(rounds.rpc))


def test_a_failure_that_cannot_be_reported_is_raised_all_the_same(server, caplog):
    rounds = Rounds(server)
    rounds.run_round(1, 0, status=error_status(grpc.StatusCode.INVALID_ARGUMENT, "UPDATE_NOT_FINITE"))
    for _ in range(ATTEMPTS - 1):
        server.fail("ReportFailure", UNAVAILABLE)
    server.fail("ReportFailure", error_status(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND", "it was removed"))
    assert rounds.error().reason == "UPDATE_NOT_FINITE"
    assert "could not be reported" in caplog.text
    assert "it was removed" in caplog.text


def test_a_long_message_is_cut(server):
    def train(model, round_):
        raise ValueError("x" * 100_000)

    rounds = Rounds(server, train)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert len(rounds.reported().message) == 1000
    rounds.error()


def test_a_train_function_that_exits_is_reported(server):
    rounds = Rounds(server, lambda model, round_: sys.exit("out of disk"))
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert rounds.reported().message == "SystemExit: out of disk"
    assert isinstance(rounds.error(), SystemExit)


def test_a_lost_update_is_logged_with_the_round_for_people(server, caplog):
    rounds = Rounds(server)
    rounds.run_round(1, 0)
    rounds.send(Event(training_id=TRAINING, sequence=2, update_lost=event_pb2.UpdateLost(round=0)))
    rounds.send(round_started(3, 0))
    rounds.training_is_at(0)
    rounds.take_update()
    rounds.send(finished(4))
    assert rounds.result().rounds == 1
    assert "Round 1: the server lost the update to a damaged file, and asks for it anew" in caplog.text


def test_a_missing_evaluate_function_is_found_before_the_first_round_is_trained(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, metric_names=["accuracy"]))
    asked = TrainingSpec(metric_names=["accuracy"])
    server.reply("GetTraining", GetTrainingResponse(training=Training(training_id=TRAINING, spec=asked)))
    assert rounds.reported().reason == "UNSUPPORTED_ROUND"
    error = rounds.error()
    assert type(error) is UnsupportedRound
    assert "asks for metrics (accuracy)" in error.message
    assert "participate(train, evaluate)" in error.message


def test_a_training_that_never_evaluates_needs_no_evaluate_function(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, metric_names=["accuracy"]))
    asked = TrainingSpec(metric_names=["accuracy"], evaluation=EVALUATION_NEVER)
    server.reply("GetTraining", GetTrainingResponse(training=Training(training_id=TRAINING, spec=asked)))
    rounds.serve_model(0)
    rounds.take_update()
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


def test_a_metric_that_is_not_finite_is_sent_with_a_warning(server, caplog):
    rounds = Rounds(server, evaluate=lambda model, round_: ({"auc": float("nan")}, 0))
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    report = server.reply("SubmitMetrics", SubmitMetricsResponse())
    assert (str(report.metrics["auc"]), report.num_examples) == ("nan", 0)
    rounds.send(finished(2))
    assert rounds.result().rounds == 1
    assert "The metric 'auc' is nan" in caplog.text


def test_an_invalid_token_ends_the_participation_at_once(server):
    call = server.run(server.client.participate, plus_one)
    server.fail("GetMyself", error_status(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"))
    assert type(call.exception(10)) is TokenInvalid


def test_a_failed_training_raises(server):
    rounds = Rounds(server)
    failed = event_pb2.TrainingFailed(reason="DEADLINE_MISSED", message="no update arrived")
    rounds.send(Event(training_id=TRAINING, sequence=1, training_failed=failed))
    error = rounds.error()
    assert type(error) is TrainingFailed
    assert (error.reason, error.message) == ("DEADLINE_MISSED", "no update arrived")


def test_the_removal_of_this_participant_raises_and_of_others_does_not(server):
    rounds = Rounds(server)
    for sequence, client_id in ((1, OTHER), (2, USER)):
        removed = event_pb2.ClientRemoved(client_id=client_id)
        rounds.send(Event(training_id=TRAINING, sequence=sequence, client_removed=removed))
    error = rounds.error()
    assert type(error) is RemovedFromTraining
    assert error.metadata == {"training_id": TRAINING}


def test_a_subscription_to_all_trainings_ignores_ended_ones(server):
    rounds = Rounds(server, training_id=None, over=[OTHER])
    assert rounds.request.training_id == ""
    rounds.send(round_started(4, 0, training_id=OTHER), finished(5, OTHER))
    rounds.run_round(1, 0)
    rounds.send(finished(2))
    assert rounds.result() == Participation(TRAINING, MODEL, 9, rounds=1)


def test_without_until_finished_it_continues_with_other_trainings(server):
    rounds = Rounds(server, training_id=None, until_finished=False)
    rounds.run_round(1, 0)
    failed = event_pb2.TrainingFailed(reason="DEADLINE_MISSED")
    rounds.send(finished(2), Event(training_id=OTHER, sequence=1, training_failed=failed))
    rounds.rpc.terminate(*OK)
    rounds.subscribe()
    assert dict(rounds.request.resume_after_sequence) == {TRAINING: 2, OTHER: 1}
    assert not rounds.call.done()
    rounds.rpc.terminate(*error_status(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"))
    assert type(rounds.error()) is TokenInvalid


def test_an_expired_cursor_restarts_at_the_current_round(server):
    rounds = Rounds(server)
    rounds.run_round(5, 0)
    cut(rounds.rpc)
    rounds.subscribe()
    rounds.rpc.terminate(*error_status(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"))
    rounds.subscribe()
    assert dict(rounds.request.resume_after_sequence) == {}
    rounds.run_round(1, 1)
    rounds.send(finished(2))
    assert rounds.result().rounds == 2


def test_a_training_that_a_restored_server_has_forgotten_does_not_end_the_others(server):
    rounds = Rounds(server, training_id=None)
    rounds.run_round(5, 0)
    cut(rounds.rpc)
    rounds.subscribe()
    unknown = error_status(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND")
    rounds.rpc.terminate(*unknown)
    server.fail("GetTraining", unknown)
    rounds.subscribe()
    assert dict(rounds.request.resume_after_sequence) == {}
    assert not rounds.call.done()
    rounds.rpc.terminate(*error_status(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"))
    assert type(rounds.error()) is TokenInvalid


@pytest.mark.parametrize("later", [False, True])
def test_the_end_of_a_training_is_not_missed_when_the_server_was_restored(server, later):
    rounds = Rounds(server, training_id=None)
    rounds.run_round(5, 0)
    cut(rounds.rpc)
    rounds.subscribe()
    rounds.rpc.terminate(*error_status(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"))
    if later:
        # It ends before the new subscription, which has running trainings only.
        rounds.training_is_at(0)
        rounds.subscribe()
        rounds.send(Event(heartbeat=event_pb2.Heartbeat()))
    rounds.training_is_at(0, TRAINING_STATE_COMPLETED)
    rounds.subscribe()
    assert (rounds.request.training_id, dict(rounds.request.resume_after_sequence)) == (TRAINING, {})
    rounds.send(finished(7))
    assert rounds.result().rounds == 1


def test_an_asynchronous_round_is_run_again_when_the_server_was_restored(server):
    aggregation = fedround_client.FedBuff(size=1)
    rounds = Rounds(server)
    rounds.send(round_started(5, 0, aggregation=aggregation))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.take_update()
    cut(rounds.rpc)
    rounds.subscribe()
    rounds.rpc.terminate(*error_status(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"))
    rounds.subscribe()
    rounds.send(round_started(2, 0, aggregation=aggregation))
    rounds.training_is_at(0)
    rounds.take_update()
    rounds.send(finished(3))
    assert rounds.result().rounds == 2


def test_a_participant_keeps_its_session_across_lost_connections(server):
    rounds = Rounds(server)
    session = uuid.UUID(rounds.request.session_id)
    cut(rounds.rpc)
    rounds.subscribe()
    assert uuid.UUID(rounds.request.session_id) == session
    rounds.send(finished(1))
    rounds.result()


def test_a_second_program_with_the_same_token_is_told_at_once(server):
    rounds = Rounds(server)
    rounds.rpc.terminate(*error_status(grpc.StatusCode.FAILED_PRECONDITION, "ALREADY_PARTICIPATING"))
    assert type(rounds.error()) is AlreadyParticipating
    assert server.time.time() == 1000
