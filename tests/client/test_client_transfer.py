import hashlib

import google_crc32c
import grpc
import numpy as np
import pytest

from client.scripted import MODEL, OK, TRAINING, UNAVAILABLE, USER, cut, is_cancelled, piece, refusal
from fedround.v1.event_pb2 import ModelInfo
from fedround.v1.model_pb2 import MODEL_PART_POSTERIOR, DownloadModelResponse, Model, UploadModelResponse
from fedround.v1.round_pb2 import GetUploadResponse, SubmitUpdateResponse, UpdateReceipt
from fedround.v1.training_pb2 import GOAL_MAXIMIZE, CreateTrainingResponse, Training
from fedround_client import (
    DigestMismatch,
    Ensemble,
    FedAvg,
    FedDc,
    FedProx,
    McDropout,
    ModelFormat,
    NoUncertainty,
    Selection,
    ServerUnavailable,
    Swag,
    options,
    to_safetensors,
)
from fedround_client.transfer import CHUNK

pytestmark = pytest.mark.timeout(30)

STATE = {"w": np.arange(500_000, dtype=np.float32)}
FILE = to_safetensors(STATE)  # three chunks
DIGEST = hashlib.sha256(FILE).hexdigest()


def receipt():
    return SubmitUpdateResponse(receipt=UpdateReceipt(update_id="u", training_id=TRAINING, sha256=DIGEST))


def test_an_update_is_declared_then_sent_in_chunks(server):
    progress = []
    call = server.run(
        server.client.submit_update,
        TRAINING,
        3,
        STATE,
        42,
        {"loss": 0.5},
        progress=lambda done, total: progress.append((done, total)),
    )
    rpc = server.upload("SubmitUpdate")
    first, data = server.receive(rpc, len(FILE))
    rpc.requests_closed()
    rpc.terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"
    spec = first.spec
    assert (spec.training_id, spec.round, spec.num_examples, dict(spec.metrics)) == (TRAINING, 3, 42, {"loss": 0.5})
    assert (spec.sha256, spec.size_bytes, spec.offset) == (DIGEST, len(FILE), 0)
    assert len(spec.upload_id) == 36
    assert data == FILE
    assert progress[0] == (CHUNK, len(FILE))
    assert progress[-1] == (len(FILE), len(FILE))


def test_a_cut_upload_goes_on_from_what_the_server_has(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    rpc = server.upload("SubmitUpdate")
    first, data = server.receive(rpc, CHUNK)
    rpc.terminate(None, *UNAVAILABLE)
    committed = 12_345
    asked = server.reply("GetUpload", GetUploadResponse(committed_size=committed))
    assert asked.upload_id == first.spec.upload_id
    rpc = server.upload("SubmitUpdate")
    again, rest = server.receive(rpc, len(FILE) - committed)
    rpc.terminate(receipt(), *OK)
    call.result(10)
    assert (again.spec.offset, again.spec.upload_id) == (committed, first.spec.upload_id)
    assert data[:committed] + rest == FILE


def test_an_incomplete_upload_goes_on_too_and_a_lost_one_begins_anew(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *refusal(grpc.StatusCode.DATA_LOSS, "UPLOAD_INCOMPLETE"))
    server.reply("GetUpload", GetUploadResponse(committed_size=len(FILE)))  # which becomes a blob just then
    server.upload("SubmitUpdate").terminate(None, *refusal(grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_OFFSET"))
    server.reply("GetUpload", GetUploadResponse(committed_size=0))
    rpc = server.upload("SubmitUpdate")
    first, data = server.receive(rpc, len(FILE))
    rpc.terminate(receipt(), *OK)
    assert call.result(10).sha256 == DIGEST
    assert (first.spec.offset, data) == (0, FILE)


def test_an_upload_whose_reply_was_lost_is_asked_for_without_bytes(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=len(FILE)))
    rpc = server.upload("SubmitUpdate")
    assert rpc.take_request().spec.offset == len(FILE)
    rpc.requests_closed()
    rpc.terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"


def test_an_upload_without_progress_is_given_up_after_eight_attempts(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    for _ in range(7):
        server.refuse("GetUpload", UNAVAILABLE)
    assert isinstance(call.exception(10), ServerUnavailable)


def test_progress_begins_the_attempts_anew(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    for committed in range(1, 30):
        server.reply("GetUpload", GetUploadResponse(committed_size=committed))
        server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=30))
    server.upload("SubmitUpdate").terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"


def test_waits_between_attempts_grow_with_full_jitter_up_to_half_a_minute(server, monkeypatch):
    drawn = []
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda low, high: drawn.append((low, high)) or high)
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    for _ in range(7):
        server.refuse("GetUpload", UNAVAILABLE)
    call.exception(10)
    waits = (0.5, 1, 2, 4, 8, 16, 30)
    assert drawn[:7] == [(0, high) for high in waits]
    assert server.time.time() == 1000 + sum(waits)


def test_a_wait_is_as_long_as_the_server_says_with_jitter_on_top(server, monkeypatch):
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda low, high: high)
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    busy = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS", retry=7.25)
    server.upload("SubmitUpdate").terminate(None, *busy)
    server.reply("GetUpload", GetUploadResponse(committed_size=0))
    assert server.time.time() == 1000 + 7.25 + 0.5
    server.upload("SubmitUpdate").terminate(None, *busy)
    server.reply("GetUpload", GetUploadResponse(committed_size=len(FILE)))
    assert server.time.time() == 1000 + 2 * 7.25 + 0.5 + 1
    server.upload("SubmitUpdate").terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "INVALID_ARGUMENT"])
def test_a_refused_upload_is_not_repeated(server, code):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *refusal(grpc.StatusCode[code], "SOME_REASON"))
    assert call.exception(10).reason == "SOME_REASON"
    assert server.time.time() == 1000


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


@pytest.mark.parametrize(
    ("make", "field", "choice"),
    [
        (options.aggregation, "fed_avg", FedAvg()),
        (options.aggregation, "fed_prox", FedProx(mu=0.5)),
        (options.aggregation, "fed_dc", FedDc(daisy_period=2, aggregation_period=6, seed=7)),
        (options.uncertainty, "none", NoUncertainty()),
        (options.uncertainty, "mc_dropout", McDropout(samples=3, softmax=True)),
        (options.uncertainty, "swag", Swag(every=2, rank=1)),
        (options.uncertainty, "ensemble", Ensemble(last_versions=3)),
    ],
)
def test_a_choice_may_be_made_by_its_options_alone(make, field, choice):
    message = make(choice)
    assert message.HasField(field)
    assert getattr(message, field) == choice
    assert make(message) is message
    assert make(None) is None


@pytest.mark.parametrize("given", [{}, {"model": STATE, "model_id": MODEL}])
def test_a_training_takes_one_model(server, given):
    with pytest.raises(TypeError, match="either a model or the model_id"):
        server.client.create_training(name="n", target_num_updates=1, **given)


def test_a_model_file_is_uploaded_from_disk(server, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILE)
    call = server.run(server.client.upload_model, path, name="m", description="d", architecture="mlp")
    rpc = server.upload("UploadModel")
    server.receive(rpc, CHUNK)
    rpc.terminate(None, *UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=2 * CHUNK - 5))
    rpc = server.upload("UploadModel")
    first, rest = server.receive(rpc, len(FILE) - 2 * CHUNK + 5)
    rpc.terminate(UploadModelResponse(model=Model(model_id=MODEL)), *OK)
    assert call.result(10).model_id == MODEL
    assert (first.spec.name, first.spec.description, first.spec.architecture) == ("m", "d", "mlp")
    assert (first.spec.sha256, first.spec.size_bytes, first.spec.offset) == (DIGEST, len(FILE), 2 * CHUNK - 5)
    assert rest == FILE[2 * CHUNK - 5 :]


def test_a_pickle_is_refused_by_the_server_with_its_words(server, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04")
    call = server.run(server.client.upload_model, path)
    status = refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODEL_FORMAT", "run `fedround convert`")
    server.upload("UploadModel").terminate(None, *status)
    error = call.exception(10)
    assert isinstance(error, ModelFormat)
    assert "fedround convert" in str(error)


def info(version=4, sha256=DIGEST):
    return ModelInfo(model_id=MODEL, version=version, sha256=sha256, size_bytes=len(FILE))


def send(rpc, data, **options):
    rpc.send_response(DownloadModelResponse(info=info(**options)))
    for start in range(0, len(data), CHUNK):
        rpc.send_response(piece(DownloadModelResponse, data[start : start + CHUNK]))


def test_a_cut_download_goes_on_with_the_same_version(server):
    progress = []
    call = server.run(server.client.download_model, MODEL, progress=lambda done, total: progress.append((done, total)))
    request, rpc = server.stream("DownloadModel")
    assert (request.model_id, request.HasField("version"), request.offset) == (MODEL, False, 0)
    send(rpc, FILE[:1000])
    cut(rpc)
    request, rpc = server.stream("DownloadModel")
    assert (request.version, request.offset) == (4, 1000)
    send(rpc, FILE[1000:])
    rpc.terminate(*OK)
    state = call.result(10)
    np.testing.assert_array_equal(state["w"], STATE["w"])
    assert progress[-1] == (len(FILE), len(FILE))


def test_a_tag_is_found_once_and_its_version_asked_for_again(server):
    call = server.run(server.client.download_model, MODEL, tag="best", part="POSTERIOR")
    request, rpc = server.stream("DownloadModel")
    assert (request.HasField("version"), request.tag, request.part) == (False, "best", MODEL_PART_POSTERIOR)
    send(rpc, FILE[:1000], version=0)
    cut(rpc)
    request, rpc = server.stream("DownloadModel")
    assert (request.HasField("version"), request.version, request.tag) == (True, 0, "")
    assert (request.part, request.offset) == (MODEL_PART_POSTERIOR, 1000)
    send(rpc, FILE[1000:], version=0)
    rpc.terminate(*OK)
    np.testing.assert_array_equal(call.result(10)["w"], STATE["w"])


def test_a_download_that_ends_early_goes_on(server):
    call = server.run(server.client.download_model, MODEL, 4)
    _, rpc = server.stream("DownloadModel")
    send(rpc, FILE[:1000])
    rpc.terminate(*OK)
    request, rpc = server.stream("DownloadModel")
    assert request.offset == 1000
    send(rpc, FILE[1000:])
    rpc.terminate(*OK)
    np.testing.assert_array_equal(call.result(10)["w"], STATE["w"])


def test_a_download_is_given_up_after_eight_attempts(server):
    call = server.run(server.client.download_model, MODEL, 4)
    for _ in range(8):
        server.stream("DownloadModel")[1].terminate(*UNAVAILABLE)
    assert isinstance(call.exception(10), ServerUnavailable)


def test_every_chunk_is_sent_with_its_checksum(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    rpc = server.upload("SubmitUpdate")
    rpc.take_request()
    for message in (rpc.take_request() for _ in range(3)):
        assert message.chunk_crc32c == google_crc32c.value(message.chunk)
    rpc.terminate(receipt(), *OK)
    call.result(10)


def test_a_damaged_upload_goes_on_from_what_the_server_has(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *refusal(grpc.StatusCode.DATA_LOSS, "CHUNK_CORRUPT"))
    server.reply("GetUpload", GetUploadResponse(committed_size=CHUNK))
    rpc = server.upload("SubmitUpdate")
    first, rest = server.receive(rpc, len(FILE) - CHUNK)
    rpc.terminate(receipt(), *OK)
    assert call.result(10).sha256 == DIGEST
    assert first.spec.offset == CHUNK
    assert rest == FILE[CHUNK:]


@pytest.mark.parametrize("wrong", [google_crc32c.value(FILE[1001:2000]), None])
def test_a_damaged_chunk_is_fetched_again(server, wrong):
    call = server.run(server.client.download_model, MODEL, 4)
    _, rpc = server.stream("DownloadModel")
    send(rpc, FILE[:1000])
    rpc.send_response(DownloadModelResponse(chunk=FILE[1000:2000], chunk_crc32c=wrong))
    request, rpc = server.stream("DownloadModel")
    assert request.offset == 1000
    send(rpc, FILE[1000:])
    rpc.terminate(*OK)
    np.testing.assert_array_equal(call.result(10)["w"], STATE["w"])


@pytest.mark.parametrize("to_file", [True, False])
def test_damaged_bytes_are_not_handed_over(server, tmp_path, to_file):
    target = tmp_path / "model.safetensors"
    call = server.run(server.client.download_model, MODEL, 4, to=target if to_file else None)
    _, rpc = server.stream("DownloadModel")
    send(rpc, FILE[:-1] + b"\xff")
    rpc.terminate(*OK)
    assert isinstance(call.exception(10), DigestMismatch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("announced", [True, False])
def test_bytes_that_nobody_announced_are_not_gathered(server, announced):
    call = server.run(server.client.download_model, MODEL, 4)
    _, rpc = server.stream("DownloadModel")
    if announced:
        send(rpc, FILE)
    rpc.send_response(DownloadModelResponse(chunk=b"x"))
    # Nobody ends the stream: the client does.
    assert isinstance(call.exception(10), DigestMismatch)
    assert is_cancelled(rpc)


def test_a_file_appears_when_it_is_complete(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"the one before")
    call = server.run(server.client.download_model, MODEL, 4, to=target)
    _, rpc = server.stream("DownloadModel")
    assert target.read_bytes() == b"the one before"
    send(rpc, FILE)
    rpc.terminate(*OK)
    assert call.result(10) == target
    assert target.read_bytes() == FILE
    assert list(tmp_path.iterdir()) == [target]
