"""Creating trainings."""

import hashlib

import numpy as np
import pytest

from client.scripted import MODEL, OK, TRAINING, UNAVAILABLE, USER
from fedround.v1.round_pb2 import GetUploadResponse
from fedround.v1.training_pb2 import GOAL_MAXIMIZE, CreateTrainingResponse, Training
from fedround_client import (
    FedProx,
    Selection,
    Swag,
    to_safetensors,
)
from fedround_client.payload import CHUNK

pytestmark = pytest.mark.timeout(30)

STATE = {"w": np.arange(500_000, dtype=np.float32)}
FILE = to_safetensors(STATE)  # three chunks
DIGEST = hashlib.sha256(FILE).hexdigest()


def test_a_training_is_created_from_a_state_dict(server):
    call = server.run(
        server.client.create_training,
        STATE,
        name="digits",
        target_num_updates=5,
        metric_names=["accuracy"],
        client_ids=[USER],
        aggregation=FedProx(mu=0.1),
        min_updates=2,
        deadline=1.5,
        evaluation="FINAL_ONLY",
        selection=Selection("accuracy", "MAXIMIZE", patience=3),
        uncertainty=Swag(rank=2),
        keep_versions=4,
        architecture="mlp",
        max_num_examples=1000,
    )
    rpc = server.upload("CreateTraining")
    cut, _ = server.receive(rpc, CHUNK)
    rpc.terminate(None, *UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=CHUNK))
    rpc = server.upload("CreateTraining")
    first, rest = server.receive(rpc, len(FILE) - CHUNK)
    rpc.terminate(CreateTrainingResponse(training=Training(training_id=TRAINING)), *OK)
    assert call.result(10).training_id == TRAINING
    assert (first.upload_id, first.offset) == (cut.upload_id, CHUNK)
    assert first.spec == cut.spec
    spec = first.spec
    assert len(spec.request_id) == 36
    assert (spec.model_sha256, spec.model_size_bytes) == (DIGEST, len(FILE))
    assert (spec.name, spec.target_num_updates, spec.max_num_examples) == ("digits", 5, 1000)
    assert spec.aggregation.fed_prox.mu == 0.1
    assert spec.round_policy.min_updates == 2
    assert spec.round_policy.deadline.ToMilliseconds() == 1500
    assert (list(spec.metric_names), list(spec.client_ids), spec.evaluation) == (["accuracy"], [USER], 2)
    assert (spec.selection.metric, spec.selection.goal, spec.selection.patience) == ("accuracy", GOAL_MAXIMIZE, 3)
    assert (spec.uncertainty.swag.rank, spec.keep_versions, spec.architecture) == (2, 4, "mlp")
    assert not spec.HasField("model_version")
    assert FILE.endswith(rest)


def test_a_training_of_a_stored_model_sends_no_bytes_and_repeats_its_request_id(server):
    call = server.run(server.client.create_training, model_id=MODEL, model_version=0, name="n", target_num_updates=1)
    rpc = server.upload("CreateTraining")
    first = rpc.take_request()
    rpc.terminate(None, *UNAVAILABLE)
    rpc = server.upload("CreateTraining")
    again = rpc.take_request()
    rpc.requests_closed()
    rpc.terminate(CreateTrainingResponse(training=Training(training_id=TRAINING)), *OK)
    assert call.result(10).training_id == TRAINING
    assert first == again
    assert (first.spec.model_id, first.upload_id, first.chunk) == (MODEL, "", b"")
    assert first.spec.HasField("model_version")
    assert not first.spec.round_policy.HasField("deadline")
    assert not any(first.spec.HasField(name) for name in ("aggregation", "uncertainty", "selection"))


@pytest.mark.parametrize("given", [{}, {"model": STATE, "model_id": MODEL}])
def test_a_training_needs_exactly_one_model(server, given):
    with pytest.raises(TypeError, match="either a model or the model_id"):
        server.client.create_training(name="n", target_num_updates=1, **given)


@pytest.mark.parametrize("field", ["metric_names", "client_ids"])
def test_one_string_is_no_list_of_strings(server, field):
    with pytest.raises(TypeError, match=rf"{field} is a list of strings, not one: write \['loss'\]"):
        server.client.create_training(STATE, name="n", target_num_updates=1, **{field: "loss"})
