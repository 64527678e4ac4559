"""Rounds of all kinds, as a participant runs them."""

import re
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.timestamp_pb2 import Timestamp

from client.rounds import Rounds, file_of, finished, info_of, plus_one, round_started
from client.scripted import OK, TRAINING, UNAVAILABLE, chunk_response, cut, error_status, is_cancelled, until
from fedround.v1.aggregation_pb2 import Aggregation, FedNova, FedProx, QFedAvg, Swag
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_SWAG
from fedround.v1.round_pb2 import DownloadAssignedModelResponse, GetUploadResponse, SubmitMetricsResponse
from fedround_client import (
    Moments,
    Round,
    UnsupportedRound,
    Update,
)

pytestmark = pytest.mark.timeout(30)


def swag_round(rounds, rank):
    rounds.send(round_started(1, 0, version=2, kind=ROUND_KIND_SWAG, swag=Swag(rank=rank)))
    rounds.training_is_at(0)
    rounds.serve_model(2)
    spec, tensors = rounds.take_tensors()
    rounds.send(finished(2))
    rounds.result()
    return spec, tensors


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
    spec, _ = rounds.run_round(2, 1)
    assert (spec.num_examples, dict(spec.metrics)) == (6, {"a": 1.0})
    rounds.send(finished(3))
    rounds.result()
    deadline = datetime(2030, 1, 2, tzinfo=UTC)
    assert seen[0] == Round(TRAINING, 0, "TRAIN", 0, deadline, 0.5, ("accuracy",), algorithm="fed_prox")
    assert seen[1] == Round(TRAINING, 1, "TRAIN", 1)


def test_an_update_says_its_steps_to_fed_nova(server):
    rounds = Rounds(server, lambda model, _: Update(model, 5, local_steps=7))
    rounds.send(round_started(1, 0, aggregation=Aggregation(fed_nova=FedNova())))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert rounds.take_update()[0].local_steps == 7
    rounds.send(finished(2))
    rounds.result()


def test_the_loss_for_q_fed_avg_is_that_of_the_model_before_training(server):
    def train(model, _):
        model["w"] += 100
        return model, 5

    def evaluate(model, round_):
        assert round_.algorithm == "q_fed_avg"
        return {"loss": np.float32(model["w"][0] / 4), "accuracy": 1.0}, 3

    rounds = Rounds(server, train, evaluate)
    rounds.send(round_started(1, 0, version=2, aggregation=Aggregation(q_fed_avg=QFedAvg())))
    rounds.training_is_at(0)
    rounds.serve_model(2)
    spec, _ = rounds.take_update()
    assert spec.initial_loss == 0.5
    rounds.send(finished(2))
    rounds.result()


def test_an_update_without_examples_need_not_say_its_loss(server):
    rounds = Rounds(server, lambda model, _: Update(model, 0))
    rounds.send(round_started(1, 0, aggregation=Aggregation(q_fed_avg=QFedAvg())))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert not rounds.take_update()[0].HasField("initial_loss")
    rounds.send(finished(2))
    rounds.result()


@pytest.mark.parametrize(
    ("aggregation", "evaluate", "words"),
    [
        (Aggregation(fed_nova=FedNova()), None, "return Update\\(model, num_examples, local_steps=...\\)"),
        (Aggregation(q_fed_avg=QFedAvg()), None, 'initial_loss=...\\), or have evaluate return a metric "loss"'),
        (Aggregation(q_fed_avg=QFedAvg()), lambda *_: ({"accuracy": 1.0}, 3), 'have evaluate return a metric "loss"'),
        (Aggregation(q_fed_avg=QFedAvg()), lambda *_: ({"loss": float("nan")}, 3), "initial_loss must be finite"),
    ],
)
def test_an_update_that_lacks_what_the_rule_needs_is_not_sent(server, aggregation, evaluate, words):
    rounds = Rounds(server, lambda model, _: (model, 5), evaluate)
    rounds.send(round_started(1, 0, aggregation=aggregation))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert re.search(words, rounds.reported().message)


def test_an_evaluation_reuses_the_file_but_not_the_arrays_of_a_model(server):
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


def test_metrics_are_resubmitted_until_the_server_answers(server):
    rounds = Rounds(server, evaluate=lambda model, round_: ({"accuracy": 1.0}, 7))
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    for _ in range(12):
        server.fail("SubmitMetrics", UNAVAILABLE)
    server.reply("SubmitMetrics", SubmitMetricsResponse())
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


def test_models_can_be_torch_tensors(server):
    def train(model, round_):
        assert isinstance(model["w"], torch.Tensor)
        return model, 1

    rounds = Rounds(server, train, framework="torch")
    rounds.run_round(1, 0)
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


def test_an_upload_survives_a_long_outage_of_the_server(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.take_update(UNAVAILABLE)
    for _ in range(30):
        server.fail("GetUpload", UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=0))
    rounds.take_update()
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


def test_an_exception_of_the_function_is_raised_unchanged(server):
    def train(model, round_):
        raise ZeroDivisionError("mine")

    rounds = Rounds(server, train)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    report = rounds.reported()
    assert (report.training_id, report.round) == (TRAINING, 0)
    assert (report.reason, report.message) == ("TRAIN_FAILED", "ZeroDivisionError: mine")
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
        (({"w": np.zeros(3, np.float32)}, True), "num_examples must be a whole number, not True"),
    ],
)
def test_an_invalid_result_is_rejected_at_once(server, result, text):
    rounds = Rounds(server, lambda model, round_: result)
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.reported()
    error = rounds.error()
    assert isinstance(error, TypeError)
    assert text in str(error)


def test_metrics_of_other_types_are_rejected_at_once(server):
    rounds = Rounds(server, lambda model, round_: (model, 1, {"loss": None}))
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert rounds.reported().reason == "TRAIN_FAILED"
    error = rounds.error()
    assert isinstance(error, TypeError)
    assert "Metric 'loss' has a value of the type NoneType: a metric is a number" in str(error)


@pytest.mark.parametrize("result", [{"accuracy": 1.0}, None, ({"accuracy": 1.0}, 1, 2), (1, {"accuracy": 1.0})])
def test_an_invalid_report_is_rejected_at_once(server, result):
    rounds = Rounds(server, evaluate=lambda model, round_: result)
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.reported()
    error = rounds.error()
    assert isinstance(error, TypeError)
    assert "evaluate must return (metrics, num_examples)" in str(error)


def test_the_number_of_examples_of_a_report_is_checked_at_once(server):
    rounds = Rounds(server, evaluate=lambda model, round_: ({"accuracy": 1.0}, 1.5))
    rounds.send(round_started(1, 0, kind=ROUND_KIND_EVALUATE))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert rounds.reported().message == "TypeError: num_examples must be a whole number, not 1.5"
    assert isinstance(rounds.error(), TypeError)


@pytest.mark.parametrize("count", [3, np.int64(3), torch.tensor(3)])
def test_num_examples_may_be_any_integer_type(count):
    assert int(Update({}, count).num_examples) == 3


@pytest.mark.parametrize(("kind", "text"), [(ROUND_KIND_EVALUATE, "evaluate function"), (99, "newer SDK")])
def test_an_unsupported_round_raises_what_is_missing(server, kind, text):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, kind=kind))
    rounds.training_is_at(0)
    rounds.reported()
    error = rounds.error()
    assert type(error) is UnsupportedRound
    assert text in error.message


def test_an_invalid_deadline_ends_the_participation(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, deadline=Timestamp(seconds=2**62)))
    rounds.training_is_at(0)
    rounds.reported()
    error = rounds.error()
    assert isinstance(error, UnsupportedRound)
    assert "deadline that is not a valid time" in str(error)


def test_an_assigned_model_is_trained_and_not_cached(server):
    seen = []

    def train(model, round_):
        seen.append(round_)
        return {"w": model["w"] + round_.local_rounds}, 1

    rounds = Rounds(server, train)
    rounds.send(round_started(1, 0, local_rounds=3))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert rounds.take_update()[1].tolist() == [3, 3, 3]
    for number, assigned in ((1, 40), (2, 50)):
        rounds.send(round_started(number + 1, number, version=0, local_rounds=3, assigned=True))
        rounds.training_is_at(number)
        request, rpc = server.stream("DownloadAssignedModel")
        assert (request.training_id, request.round, request.offset) == (TRAINING, number, 0)
        file = file_of(assigned)
        rpc.send_response(chunk_response(DownloadAssignedModelResponse, file[:20], info=info_of(0, file)))
        cut(rpc)
        request, rpc = server.stream("DownloadAssignedModel")
        assert (request.round, request.offset) == (number, 20)
        rpc.send_response(chunk_response(DownloadAssignedModelResponse, file[20:], info=info_of(0, file)))
        rpc.terminate(*OK)
        assert rounds.take_update()[1].tolist() == [assigned + 3] * 3
    rounds.send(finished(4))
    assert rounds.result().rounds == 3
    assert seen[0] == Round(TRAINING, 0, "TRAIN", 0, local_rounds=3)
    assert seen[2] == Round(TRAINING, 2, "TRAIN", 0, local_rounds=3, assigned=True)


def test_without_an_assigned_model_it_waits_for_the_next_round(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, assigned=True))
    rounds.training_is_at(0)
    server.stream("DownloadAssignedModel")[1].terminate(
        *error_status(grpc.StatusCode.PERMISSION_DENIED, "NOT_IN_COHORT")
    )
    rounds.run_round(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_swag_function_sends_moments(server):
    seen = []

    def swag(model, round_):
        seen.append(round_)
        moments = Moments(round_.swag_rank)
        for _ in range(3):
            model["w"] *= 2
            moments.add(model)
        return moments.update(), 6, {"loss": 0.5}

    spec, tensors = swag_round(Rounds(server, swag=swag), rank=1)
    assert seen == [Round(TRAINING, 0, "SWAG", 2, swag_rank=1)]
    assert (spec.num_examples, dict(spec.metrics)) == (6, {"loss": 0.5})
    assert sorted(tensors) == ["deviation/0/w", "mean/w", "second/w"]
    np.testing.assert_array_equal(tensors["mean/w"], np.full(3, (4 + 8 + 16) / 3))
    np.testing.assert_array_equal(tensors["second/w"], np.full(3, (16 + 64 + 256) / 3))
    np.testing.assert_array_equal(tensors["deviation/0/w"], np.full(3, 16 - 28 / 3, np.float32))


@pytest.mark.parametrize(("rank", "times"), [(0, 10), (3, 10), (10, 11)])
def test_without_a_swag_function_train_is_called_repeatedly(server, rank, times):
    seen = []

    def train(model, round_):
        seen.append((model["w"].tolist(), round_.kind))
        return plus_one(model, round_)

    spec, tensors = swag_round(Rounds(server, train), rank)
    assert seen == [([2 + number] * 3, "SWAG") for number in range(times)]
    assert (spec.num_examples, dict(spec.metrics)) == (10, {"loss": 0.25})
    snapshots = np.arange(3, 3 + times)
    np.testing.assert_array_equal(tensors["mean/w"], np.full(3, snapshots.mean()))
    np.testing.assert_array_equal(tensors["second/w"], np.full(3, (snapshots**2).mean()))
    assert len(tensors) == 2 + rank
    if rank:
        assert all(tensors[f"deviation/{column}/w"].all() for column in range(rank))


def test_the_models_of_a_swag_round_can_be_torch_tensors(server):
    def train(model, round_):
        assert isinstance(model["w"], torch.Tensor)
        return {"w": model["w"].numpy() + 1}, 1

    _, tensors = swag_round(Rounds(server, train, framework="torch"), rank=0)
    np.testing.assert_array_equal(tensors["mean/w"], np.full(3, np.arange(3, 13).mean()))
