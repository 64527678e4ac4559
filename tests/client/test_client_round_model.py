"""Trainings of a part of a model: what a participant gets, sends, keeps, and downloads once."""

import hashlib

import numpy as np
import pytest

from client.rounds import Rounds, finished
from client.scripted import MODEL, OK, TRAINING, USER, chunk_response
from fedround.v1 import model_pb2
from fedround.v1.event_pb2 import ROUND_KIND_TRAIN, Event, ModelInfo, RoundStarted
from fedround.v1.model_pb2 import DownloadModelResponse
from fedround.v1.round_pb2 import ReportFailureResponse
from fedround_client import BaseMissing, TensorError, from_safetensors, to_safetensors
from fedround_client.tensor_selection import PrivateTensors
from fedround_client.tensors import array_sources

pytestmark = pytest.mark.timeout(60)

BASE = {name: np.zeros(3, np.float32) for name in ("body", "lora", "own.mean", "own.var")}


def digest(file):
    return hashlib.sha256(file).hexdigest()


def whole(state=BASE):
    file = to_safetensors(state)
    return ModelInfo(model_id=MODEL, sha256=digest(file), size_bytes=len(file))


def version(number, delta):
    """A version that is stored as a base and a delta."""
    base, file = to_safetensors(BASE), to_safetensors(delta)
    parts = {"base_sha256": digest(base), "base_size_bytes": len(base), "delta_sha256": digest(file)}
    return ModelInfo(model_id=MODEL, version=number, sha256="ff" * 32, delta_size_bytes=len(file), **parts)


def started(sequence, number, model, trainable=("lora",), private=("own.*",), **options):
    payload = RoundStarted(
        round=number,
        kind=ROUND_KIND_TRAIN,
        model=model,
        local_rounds=1,
        trainable=trainable,
        private=private,
        **options,
    )
    return Event(training_id=TRAINING, sequence=sequence, round_started=payload)


def serve(server, part, state):
    request, rpc = server.stream("DownloadModel")
    assert (request.model_id, request.part) == (MODEL, part)
    file = to_safetensors(state)
    info = ModelInfo(model_id=MODEL, version=request.version, sha256=digest(file), size_bytes=len(file))
    rpc.send_response(chunk_response(DownloadModelResponse, file, info=info))
    rpc.terminate(*OK)


def adding(seen):
    """Trains everything by one more, and notes what it got."""

    def train(model, round_):
        seen.append({name: float(tensor[0]) for name, tensor in model.items()})
        return {name: tensor + 1 for name, tensor in model.items()}, 1

    return train


def taken(rounds):
    """The tensors of the update that is sent."""
    return rounds.take_tensors()[1]


def begin(rounds, *events):
    rounds.send(events[0])
    rounds.training_is_at(0)
    rounds.send(*events[1:])


def test_the_base_comes_once_and_private_tensors_stay(server, tmp_path):
    seen = []
    rounds = Rounds(server, adding(seen), private_folder=tmp_path)
    begin(rounds, started(1, 0, whole()))
    serve(server, model_pb2.MODEL_PART_MODEL, BASE)
    assert {name: tensor.tolist() for name, tensor in taken(rounds).items()} == {"lora": [1, 1, 1]}
    delta = {"lora": np.full(3, 7, np.float32)}
    rounds.send(started(2, 1, version(1, delta)))
    rounds.training_is_at(1)
    # The base is the file of version 0, which is there.
    serve(server, model_pb2.MODEL_PART_DELTA, delta)
    assert taken(rounds)["lora"].tolist() == [8, 8, 8]
    rounds.send(finished(3))
    assert rounds.call.result(20).rounds == 2
    assert seen == [
        {"body": 0, "lora": 0, "own.mean": 0, "own.var": 0},
        {"body": 0, "lora": 7, "own.mean": 1, "own.var": 1},
    ]
    kept = from_safetensors(PrivateTensors(tmp_path).path(USER, TRAINING).read_bytes())
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {"own.mean": [2] * 3, "own.var": [2] * 3}


def test_private_tensors_survive_a_restart(server, tmp_path):
    path = PrivateTensors(tmp_path).path(USER, TRAINING)
    path.write_bytes(to_safetensors({"own.mean": np.full(3, 5, np.float32), "body": np.full(3, 9, np.float32)}))
    seen = []

    def train(model, round_):
        seen.append({name: float(tensor[0]) for name, tensor in model.items()})
        # It may leave out what is not trained, and what stays as it is.
        return {"lora": model["lora"] + 1, "own.var": model["own.var"] + 3}, 1

    delta = {"lora": np.full(3, 7, np.float32)}
    rounds = Rounds(server, train, private_folder=tmp_path)
    begin(rounds, started(1, 3, version(3, delta)))
    serve(server, model_pb2.MODEL_PART_BASE, BASE)
    serve(server, model_pb2.MODEL_PART_DELTA, delta)
    assert list(taken(rounds)) == ["lora"]
    assert seen == [{"body": 0, "lora": 7, "own.mean": 5, "own.var": 0}]
    kept = from_safetensors(path.read_bytes())
    assert {name: float(tensor[0]) for name, tensor in kept.items()} == {"own.mean": 5, "own.var": 3}
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_file_as_an_update_is_divided_too(server, tmp_path):
    result = tmp_path / "result.safetensors"
    result.write_bytes(to_safetensors({name: tensor + 4 for name, tensor in BASE.items()}))
    rounds = Rounds(server, lambda model, round_: (result, 1), private_folder=tmp_path / "private")
    begin(rounds, started(1, 0, whole()))
    serve(server, model_pb2.MODEL_PART_MODEL, BASE)
    assert {name: tensor.tolist() for name, tensor in taken(rounds).items()} == {"lora": [4, 4, 4]}


def test_unknown_names_are_left_to_the_server(server, tmp_path):
    def train(model, round_):
        assert (round_.trainable, round_.private) == (("lora",), ("own.*",))
        return {"module.lora": model["lora"]}, 1

    rounds = Rounds(server, train, private_folder=tmp_path)
    begin(rounds, started(1, 0, whole()))
    serve(server, model_pb2.MODEL_PART_MODEL, BASE)
    assert list(taken(rounds)) == ["module.lora"]


def fails(rounds, server, error, reason):
    request = server.reply("ReportFailure", ReportFailureResponse())
    assert request.reason == reason
    with pytest.raises(error) as caught:
        rounds.call.result(20)
    return str(caught.value)


def test_an_update_without_trained_tensors_is_an_error(server, tmp_path):
    rounds = Rounds(server, lambda model, round_: ({"body": model["body"]}, 1), private_folder=tmp_path)
    begin(rounds, started(1, 0, whole()))
    serve(server, model_pb2.MODEL_PART_MODEL, BASE)
    message = fails(rounds, server, TensorError, "TRAIN_FAILED")
    assert "none of the tensors that the training updates (lora)" in message


def test_a_damaged_file_of_private_tensors_is_named(server, tmp_path):
    path = PrivateTensors(tmp_path).path(USER, TRAINING)
    path.write_bytes(b"no safetensors")
    rounds = Rounds(server, adding([]), private_folder=tmp_path)
    begin(rounds, started(1, 0, whole()))
    serve(server, model_pb2.MODEL_PART_MODEL, BASE)
    message = fails(rounds, server, TensorError, "TRAIN_FAILED")
    assert str(path) in message
    assert "or remove it to begin again" in message


@pytest.mark.parametrize("problem", ["none", "gone", "other"])
def test_an_external_base_that_is_not_there(server, tmp_path, problem):
    path = tmp_path / "base.safetensors"
    file = to_safetensors({"deep": np.ones(3, np.float32)})
    if problem == "other":
        path.write_bytes(file + b" ")
    rounds = Rounds(server, adding([]), base=None if problem == "none" else path)
    begin(rounds, started(1, 0, whole(), (), (), external_base_sha256=digest(file)))
    message = fails(rounds, server, BaseMissing, "BASE_MISSING")
    assert digest(file) in message
    assert {"none": "participate(base=...)", "gone": "there is no file", "other": "get the right file"}[
        problem
    ] in message


def test_an_external_base_is_merged_and_never_sent(server, tmp_path):
    path = tmp_path / "base.safetensors"
    base = {"deep": np.full(3, 2, np.float32), "norm": np.full(3, 3, np.float32)}
    path.write_bytes(to_safetensors(base))
    seen, model = [], {"lora": np.zeros(3, np.float32)}
    rounds = Rounds(server, adding(seen), base=path, private_folder=tmp_path / "private")
    begin(rounds, started(1, 0, whole(model), (), ("norm",), external_base_sha256=digest(path.read_bytes())))
    serve(server, model_pb2.MODEL_PART_MODEL, model)
    assert list(taken(rounds)) == ["lora"]
    assert seen == [{"deep": 2, "norm": 3, "lora": 0}]
    [kept] = (tmp_path / "private").iterdir()
    assert list(from_safetensors(kept.read_bytes())) == ["norm"]


def test_participants_of_one_folder_keep_files_of_their_own(tmp_path):
    store = PrivateTensors(tmp_path)
    assert store.path(USER, TRAINING) != store.path(TRAINING, USER)
    with pytest.raises(ValueError, match="hexadecimal"):
        store.path("../../" + USER, TRAINING)


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    store, path = PrivateTensors(tmp_path), tmp_path / "kept"
    store.save(path, array_sources({"a": np.ones(3)}), {})

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        store.save(path, array_sources({"a": np.zeros(3)}), {})
    assert from_safetensors(path.read_bytes())["a"].tolist() == [1, 1, 1]
    assert [one.name for one in tmp_path.iterdir()] == ["kept"]
