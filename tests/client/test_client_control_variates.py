"""Control variates of a participant, against a scripted server, and their numbers in all types."""

import numpy as np
import pytest
import torch

from client.rounds import Rounds, finished, round_started
from client.scripted import MODEL, OK, TRAINING
from fedround.v1 import event_pb2
from fedround.v1.aggregation_pb2 import Aggregation, FedDyn, Scaffold
from fedround.v1.event_pb2 import Event, ModelInfo
from fedround.v1.round_pb2 import DownloadControlResponse
from fedround_client import Update
from fedround_client.casting import read_numbers
from fedround_client.round_control import FedDynControl, LocalTraining, ScaffoldControl, numbers_of
from fedround_client.safetensors_header import TensorInfo
from fedround_client.tensors import array_sources

SCAFFOLD = Aggregation(scaffold=Scaffold(learning_rate=1))


def no_control(server):
    """Answers that there is no control variate yet."""
    request, rpc = server.stream("DownloadControl")
    rpc.send_response(DownloadControlResponse(info=ModelInfo(model_id=MODEL)))
    rpc.terminate(*OK)
    return request


def plus_one(model, round_):
    return Update({"w": model["w"] + round_.control.correct({"w": np.ones(3, np.float32)})["w"]}, 10, {}, 2, None, 0.5)


def play(rounds, server, sequence, number, *, cached=False):
    rounds.send(round_started(sequence, number, aggregation=SCAFFOLD))
    rounds.training_is_at(number)
    if not cached:
        rounds.serve_model(number)
    assert no_control(server).round == number
    return rounds.take_tensors()[1]


def test_an_update_has_the_change_of_the_control_variate(server, tmp_path):
    rounds = Rounds(server, plus_one, private_folder=tmp_path)
    first = play(rounds, server, 1, 0)
    # c is 0 in both rounds. (x - y) / (K eta) is -1, and then, since the step is 1 - c_i, it is -2.
    assert (first["w"].tolist(), first["control/w"].tolist()) == ([1] * 3, [-1] * 3)
    second = play(rounds, server, 2, 1)
    assert (second["w"].tolist(), second["control/w"].tolist()) == ([3] * 3, [-2] * 3)
    rounds.send(finished(3))
    rounds.result()


def test_a_round_that_lost_an_update_begins_with_the_control_variate_before(server, tmp_path):
    rounds = Rounds(server, plus_one, private_folder=tmp_path)
    play(rounds, server, 1, 0)
    second = play(rounds, server, 2, 1)
    rounds.send(Event(training_id=TRAINING, sequence=3, update_lost=event_pb2.UpdateLost(round=1)))
    again = play(rounds, server, 4, 1, cached=True)
    assert {name: one.tolist() for name, one in again.items()} == {name: one.tolist() for name, one in second.items()}
    third = play(rounds, server, 5, 2)
    assert third["w"].tolist() == [2 + 1 + 3] * 3
    rounds.send(Event(training_id=TRAINING, sequence=6, update_lost=event_pb2.UpdateLost(round=2)))
    # Without it, the next round goes on from round 1.
    fourth = play(rounds, server, 7, 3)
    assert fourth["w"].tolist() == [3 + 1 + 3] * 3
    rounds.send(finished(8))
    rounds.result()
    assert not list(tmp_path.rglob("*.*"))


def test_fed_dyn_needs_nothing_from_the_server(server, tmp_path):
    def train(model, round_):
        assert round_.control.alpha == 0.25
        with pytest.raises(ValueError, match=r"correct\(gradients, weights\)"):
            round_.control.correct({"w": model["w"]})
        model["w"] += 2
        assert round_.control.correct({"w": np.zeros(3, np.float32)}, model)["w"].tolist() == [0.5 + 0.5 * number] * 3
        return Update(model, 1)

    rounds = Rounds(server, train, private_folder=tmp_path)
    for number in range(2):
        rounds.send(round_started(number + 1, number, aggregation=Aggregation(fed_dyn=FedDyn(alpha=0.25))))
        rounds.training_is_at(number)
        rounds.serve_model(number)
        assert rounds.take_tensors()[1].keys() == {"w"}
    rounds.send(finished(9))
    rounds.result()


def values(kind):
    return {
        "float64": np.array([1.0, -2.0]),
        "float16": np.array([[1.0], [-2.0]], np.float16),
        "scalar": np.array(1.5, np.float32),
        "complex": np.array([1 + 2j, -3j], np.complex64),
        "bfloat16": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "float8": torch.tensor([1.0, -2.0], dtype=torch.float8_e4m3fn),
        "torch": torch.tensor([[1.0, -2.0]], requires_grad=True),
    }[kind]


@pytest.mark.parametrize("kind", ["float64", "float16", "scalar", "complex", "bfloat16", "float8", "torch"])
def test_numbers_of_all_types(kind):
    start = values(kind)
    (source,) = array_sources({"w": start})
    dtype = source.info.dtype if source.info.dtype in ("F64", "C64") else "F32"
    infos = {"w": TensorInfo("w", dtype, source.info.shape)}
    zeros = np.zeros(infos["w"].shape, {"F64": np.float64, "C64": np.complex64}.get(dtype, np.float32))
    control = ScaffoldControl(infos, {"w": zeros + 1}, lambda: {"w": start}, {"w": zeros + 3})
    moved = start.to(torch.float32).detach() if isinstance(start, torch.Tensor) else start
    update = {"w": array_sources({"w": moved - 1})[0]}
    change = control.change(update, LocalTraining(1, 2, 0.25))
    (sent,), (own,) = change.sent, change.own
    assert (sent.info, own.info) == (TensorInfo("control/w", dtype, infos["w"].shape), infos["w"])
    # (x - y) / (K eta) - c, and with c_i.
    ones = read_numbers(array_sources({"w": zeros + 1})[0])
    assert np.allclose(sent.numbers(), ones / 0.5 - 3 * ones)
    assert np.allclose(own.numbers(), ones / 0.5 - 2 * ones)
    gradient = torch.zeros_like(start, dtype=torch.float32) if isinstance(start, torch.Tensor) else np.zeros_like(start)
    corrected = control.correct({"w": gradient, "other": gradient, "none": None})
    assert np.allclose(numbers_of(corrected, "w"), 2 * ones)
    assert corrected["w"].dtype == gradient.dtype
    assert corrected["other"] is gradient
    assert corrected["none"] is None
    assert not getattr(corrected["w"], "requires_grad", False)


def test_where_the_model_is_not_finite_nothing_is_remembered():
    start = {"w": np.array([0.0, np.nan, np.inf])}
    infos, zeros = {"w": TensorInfo("w", "F64", (3,))}, {"w": np.zeros(3)}
    update = {"w": array_sources({"w": np.array([1.0, np.nan, np.inf])})[0]}
    scaffold = ScaffoldControl(infos, zeros, lambda: start, zeros)
    (sent,) = scaffold.change(update, LocalTraining(1, 1, 1.0)).sent
    assert sent.numbers().tolist() == [-1, 0, 0]
    (own,) = FedDynControl(infos, zeros, lambda: start, 0.5).change(update, LocalTraining(1, None, None)).own
    assert own.numbers().tolist() == [-0.5, 0, 0]


@pytest.mark.parametrize("learning_rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_is_positive(learning_rate):
    with pytest.raises(ValueError, match="learning_rate must be finite and > 0"):
        Update({}, 1, learning_rate=learning_rate)
