"""Rounds of daisy chaining and of SWAG, as a participant plays them."""

import grpc
import numpy as np
import pytest
import torch

from client.rounds import Rounds, file_of, finished, info_of, plus_one, round_started
from client.scripted import OK, TRAINING, cut, piece, refusal
from fedround.v1.aggregation_pb2 import Swag
from fedround.v1.event_pb2 import ROUND_KIND_SWAG
from fedround.v1.round_pb2 import DownloadDealtModelResponse
from fedround_client import Moments, Round

pytestmark = pytest.mark.timeout(30)


def test_a_dealt_model_is_trained_on_for_the_local_rounds_and_never_kept(server):
    seen = []

    def train(model, round_):
        seen.append(round_)
        return {"w": model["w"] + round_.local_rounds}, 1

    rounds = Rounds(server, train)
    rounds.send(round_started(1, 0, local_rounds=3))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    assert rounds.take_update()[1].tolist() == [3, 3, 3]
    for number, dealt in ((1, 40), (2, 50)):
        rounds.send(round_started(number + 1, number, version=0, local_rounds=3, dealt=True))
        rounds.training_is_at(number)
        request, rpc = server.stream("DownloadDealtModel")
        assert (request.training_id, request.round, request.offset) == (TRAINING, number, 0)
        file = file_of(dealt)
        rpc.send_response(piece(DownloadDealtModelResponse, file[:20], info=info_of(0, file)))
        cut(rpc)
        request, rpc = server.stream("DownloadDealtModel")
        assert (request.round, request.offset) == (number, 20)
        rpc.send_response(piece(DownloadDealtModelResponse, file[20:], info=info_of(0, file)))
        rpc.terminate(*OK)
        assert rounds.take_update()[1].tolist() == [dealt + 3] * 3
    rounds.send(finished(4))
    assert rounds.result().rounds == 3
    assert seen[0] == Round(TRAINING, 0, "TRAIN", 0, local_rounds=3)
    assert seen[2] == Round(TRAINING, 2, "TRAIN", 0, local_rounds=3, assigned=True)


def test_who_was_dealt_nothing_waits_for_the_next_round(server):
    rounds = Rounds(server)
    rounds.send(round_started(1, 0, dealt=True))
    rounds.training_is_at(0)
    server.stream("DownloadDealtModel")[1].terminate(*refusal(grpc.StatusCode.PERMISSION_DENIED, "NOT_IN_COHORT"))
    rounds.play(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 1


def swag_round(rounds, rank):
    rounds.send(round_started(1, 0, version=2, kind=ROUND_KIND_SWAG, swag=Swag(rank=rank)))
    rounds.training_is_at(0)
    rounds.serve_model(2)
    spec, tensors = rounds.take_tensors()
    rounds.send(finished(2))
    rounds.result()
    return spec, tensors


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
def test_without_a_swag_function_it_trains_several_times_in_a_row(server, rank, times):
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


def test_the_models_of_a_swag_round_are_tensors_for_torch(server):
    def train(model, round_):
        assert isinstance(model["w"], torch.Tensor)
        return {"w": model["w"].numpy() + 1}, 1

    _, tensors = swag_round(Rounds(server, train, framework="torch"), rank=0)
    np.testing.assert_array_equal(tensors["mean/w"], np.full(3, np.arange(3, 13).mean()))
