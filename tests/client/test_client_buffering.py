"""Participants of asynchronous trainings: which rounds they run, and what becomes of their updates."""

import hashlib

import grpc
import numpy as np
import pytest
from typer import BadParameter

import fedround_client as fr
from client.rounds import Rounds, finished, plus_one, round_started
from client.scripted import OK, TRAINING, done, error_status, fields
from fedround.v1 import event_pb2
from fedround.v1.aggregation_pb2 import Aggregation
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, Event
from fedround.v1.round_pb2 import (
    GetRoundResponse,
    Round,
    RoundParticipant,
    SubmitMetricsResponse,
    SubmitUpdateResponse,
    UpdateReceipt,
    UpdateReport,
)
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    CreateTrainingResponse,
    Evaluation,
    GetTrainingResponse,
    Training,
    TrainingSpec,
)
from fedround_client.command.aggregation import aggregation_option

pytestmark = pytest.mark.timeout(30)

BUFFERED = fr.FedBuff(size=2, max_staleness=2)
CLOSED = error_status(grpc.StatusCode.FAILED_PRECONDITION, "ROUND_NOT_OPEN", "the training is paused")
STALE = error_status(grpc.StatusCode.FAILED_PRECONDITION, "UPDATE_STALE", "too old")


def started(sequence, number, **options):
    return round_started(sequence, number, aggregation=BUFFERED, **options)


class Buffered(Rounds):
    """A participant of an asynchronous training."""

    def train(self, number, counts_in=None, status=OK):
        """Lets it train the version of a round, and answers its update."""
        self.training_is_at(number)
        self.serve_model(number)
        return self.take(number if counts_in is None else counts_in, status)

    def take(self, counts_in, status=OK):
        rpc = self.server.upload("SubmitUpdate")
        first = rpc.take_request()
        spec = first.spec
        assert hashlib.sha256(first.chunk).hexdigest() == spec.sha256
        rpc.terminate(SubmitUpdateResponse(receipt=UpdateReceipt(round=counts_in)), *status)
        return spec.round, spec.base_version, spec.sha256


def test_an_update_names_its_version_and_rounds_up_to_the_receipts_are_skipped(server, caplog):
    caplog.set_level("INFO")
    rounds = Buffered(server)
    rounds.send(started(1, 0))
    assert rounds.train(0, counts_in=2)[:2] == (0, 0)
    rounds.send(started(2, 1), started(3, 2), started(4, 3))
    assert rounds.train(3)[:2] == (3, 3)
    rounds.send(finished(5))
    assert rounds.result().rounds == 2
    assert "Round 1: accepted for round 3; waiting for the next round" in caplog.text
    assert "Round 4: accepted; waiting for the next round" in caplog.text


def test_it_goes_on_with_the_newest_round(server):
    rounds = Buffered(server)
    rounds.send(started(1, 0), started(2, 1), started(3, 2))
    for _ in range(2):
        rounds.training_is_at(2)
    assert rounds.train(2)[:2] == (2, 2)
    rounds.send(finished(4))
    assert rounds.result().rounds == 1


def test_a_stale_update_is_discarded(server, caplog):
    rounds = Buffered(server)
    rounds.send(started(1, 0))
    rounds.train(0, status=STALE)
    rounds.send(started(2, 5))
    rounds.train(5)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1
    assert "Round 1: the update is discarded: " in caplog.text


def test_an_update_is_kept_while_the_training_is_paused(server, caplog):
    seen = []

    def train(model, round_):
        seen.append(round_.number)
        return plus_one(model, round_)

    rounds = Buffered(server, train)
    rounds.send(started(1, 0))
    first = rounds.train(0, status=CLOSED)
    rounds.send(started(2, 1))
    rounds.training_is_at(1)
    assert rounds.take(1) == first
    rounds.send(started(3, 2))
    rounds.train(2)
    rounds.send(finished(4))
    assert rounds.result().rounds == 2
    assert seen == [0, 2]
    assert "Round 1: the update is kept for the next round" in caplog.text


def test_a_kept_update_that_is_stale_by_then_is_discarded(server, caplog):
    rounds = Buffered(server)
    rounds.send(started(1, 0))
    rounds.train(0, status=CLOSED)
    rounds.send(started(2, 4))
    rounds.training_is_at(4)
    rounds.take(4, STALE)
    rounds.serve_model(4)
    assert rounds.take(4)[:2] == (4, 4)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_kept_update_does_not_replace_the_last_evaluation(server):
    rounds = Buffered(server, evaluate=lambda model, _: ({"loss": 1.0}, 1))
    rounds.send(started(1, 0))
    rounds.train(0, status=CLOSED)
    rounds.send(round_started(2, 1, kind=ROUND_KIND_EVALUATE, aggregation=BUFFERED))
    rounds.training_is_at(1)
    rounds.serve_model(1)
    rounds.server.reply("SubmitMetrics", SubmitMetricsResponse())
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def test_a_lost_update_is_made_anew(server):
    rounds = Buffered(server)
    rounds.send(started(1, 0))
    rounds.train(0, counts_in=1)
    lost = event_pb2.UpdateLost(round=1)
    rounds.send(Event(training_id=TRAINING, sequence=2, update_lost=lost), started(3, 1))
    rounds.train(1)
    rounds.send(finished(4))
    assert rounds.result().rounds == 1


@pytest.mark.parametrize(
    ("training", "over"),
    [
        (Training(round=2, model_version=2), False),
        (Training(round=2, model_version=2, round_closed=True), True),
        (Training(round=3, model_version=3), True),
        (Training(round=1, model_version=1, state=TRAINING_STATE_COMPLETED), True),
        (Training(round=1, model_version=1, spec=TrainingSpec(target_num_updates=1)), True),
    ],
    ids=["two versions later", "a third is made", "three later", "ended", "complete"],
)
def test_a_round_is_over_once_its_update_would_be_stale(server, training, over):
    if not training.spec.target_num_updates:
        training.spec.target_num_updates = 9
    answers = []

    def train(model, round_):
        answers.append(round_.is_over())
        return plus_one(model, round_)

    rounds = Buffered(server, train)
    rounds.send(started(1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.server.reply("GetTraining", GetTrainingResponse(training=training))
    if not over:
        rounds.take(2)
    rounds.send(finished(2))
    assert rounds.result().rounds == (not over)
    assert answers == [over]


def test_the_functions_fill_in_the_messages():
    assert fr.FedBuff() == Aggregation(buffering=fr.Buffering(size=10, max_staleness=10, exponent=0.5, fed_buff={}))
    robust = fr.FedBuff(5, 3, 0.0, aggregation=fr.Median(), clipping=fr.FixedClipping(norm=2))
    assert (robust.WhichOneof("algorithm"), robust.clipping.fixed.norm, robust.buffering.size) == ("median", 2, 5)
    assert fr.FedAsync(0.3).buffering == fr.Buffering(max_staleness=10, exponent=0.5, fed_async={"alpha": 0.3})
    assert fr.aggregate(fr.FedProx(mu=1), buffering=fr.Buffering(size=3)).buffering == fr.Buffering(size=3)
    assert fr.FedBuff(server_optimizer=fr.Sgd(learning_rate=0.5)).server_optimizer.sgd.learning_rate == 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fr.FedBuff(0), "size must be at least 1"),
        (lambda: fr.FedBuff(max_staleness=0), "max_staleness must be at least 1"),
        (lambda: fr.FedBuff(exponent=-1), "exponent must be a finite number >= 0"),
        (lambda: fr.FedAsync(np.nan), "alpha must be > 0 and <= 1"),
        (lambda: fr.FedAsync(2), "alpha must be > 0 and <= 1"),
        (lambda: fr.FedBuff(aggregation=fr.FedAsync()), "The aggregation has a buffering already"),
    ],
)
def test_an_option_out_of_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("fedbuff:size=3,max_staleness=4", "", "", "", ()), fr.FedBuff(3, 4)),
        (("FedAsync:alpha=0.25,exponent=0", "", "", "", ()), fr.FedAsync(0.25, exponent=0)),
        (("median", "", "", "", (), "fed_buff:size=5"), fr.FedBuff(5, aggregation=fr.Median())),
        (("fedadam", "", "", "", (), "fed_async"), fr.FedAsync(aggregation=fr.FedAdam())),
        (("", "", "", "", (), "fed_buff"), fr.FedBuff()),
    ],
)
def test_options_of_the_command(options, wanted):
    assert aggregation_option(*options) == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("", "", "", "", (), "buffer"), "--buffering: there is no 'buffer'; known are fed_buff, fed_async"),
        (("", "", "", "", (), "fed_async:size=2"), "--buffering: fed_async has no option 'size'; known are alpha, max"),
        (("fedbuff:alpha=1", "", "", "", ()), "--aggregation: fedbuff has no option 'alpha'; known are size, max_sta"),
        (("fedbuff:size=0", "", "", "", ()), "--aggregation fedbuff: size must be at least 1"),
        (("fedbuff", "", "", "", (), "fed_buff"), "--buffering: The aggregation has a buffering already"),
    ],
)
def test_wrong_options_of_the_command(options, words):
    with pytest.raises(BadParameter, match=words):
        aggregation_option(*options)


def test_buffering_is_shown(server, command):
    stages = fr.FedBuff(3, aggregation=fr.FedAdam(aggregation=fr.Median()))
    for buffered, text in (
        (stages, "FedBuff(size=3, max_staleness=10, exponent=0.5) of FedAdam("),
        (fr.FedAsync(), "FedAsync(alpha=0.6, max_staleness=10, exponent=0.5) of FedAvg"),
    ):
        call = command("training", "show", TRAINING)
        training = Training(training_id=TRAINING, spec=TrainingSpec(aggregation=buffered))
        server.reply("GetTraining", GetTrainingResponse(training=training))
        assert fields(done(call).stdout)["aggregation"].startswith(text)


def test_the_staleness_of_each_update_is_shown(server, command):
    call = command("training", "round", TRAINING)
    reports = [UpdateReport(share=0.5, staleness=number) for number in (0, 3)]
    found = [RoundParticipant(name=f"ward {number}", report=report) for number, report in enumerate(reports)]
    server.reply("GetRound", GetRoundResponse(round=Round(participants=found)))
    server.reply("GetTraining", GetTrainingResponse(training=Training()))
    lines = [line.split() for line in done(call).stdout.splitlines()]
    place = lines.index(["UPDATE", "OF", "SHARE", "STALENESS"])
    assert lines[place + 1 : place + 3] == [["ward", "0", "0.5", "0"], ["ward", "1", "0.5", "3"]]


def test_an_actor_that_waits_learns_how_many_updates_are_missing(server, caplog):
    caplog.set_level("INFO", "fedround_client")
    call = server.run(server.client.wait, TRAINING)
    _, rpc = server.stream("Subscribe")
    rpc.send_response(started(1, 0))
    server.reply("GetTraining", GetTrainingResponse(training=Training(spec=TrainingSpec(target_num_updates=9))))
    server.reply("GetRound", GetRoundResponse(round=Round(updates_arrived=7, updates_expected=10)))
    rpc.send_response(finished(2))
    server.reply("GetTraining", GetTrainingResponse(training=Training(state=TRAINING_STATE_COMPLETED)))
    call.result(10)
    assert "Round 1 of 9: waiting for 3 more of 10 updates" in caplog.messages


@pytest.mark.parametrize(
    ("aggregation", "evaluation", "sent"),
    [
        (None, None, "EVERY_ROUND"),
        (fr.Median(), None, "EVERY_ROUND"),
        (fr.FedBuff(), None, "UNSPECIFIED"),
        (fr.FedBuff(), "NEVER", "NEVER"),
    ],
)
def test_the_server_chooses_when_to_evaluate_an_asynchronous_training(server, aggregation, evaluation, sent):
    call = server.run(
        server.client.create_training,
        {"w": np.zeros(3)},
        name="n",
        target_num_updates=1,
        metric_names=["loss"],
        aggregation=aggregation,
        evaluation=evaluation,
    )
    rpc = server.upload("CreateTraining")
    assert rpc.take_request().spec.evaluation == Evaluation.Value(f"EVALUATION_{sent}")
    rpc.terminate(CreateTrainingResponse(training=Training(training_id=TRAINING)), *OK)
    assert call.result(10).training_id == TRAINING
