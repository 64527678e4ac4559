"""Uploads that are cut, damaged, or rejected."""

import hashlib

import google_crc32c
import grpc
import numpy as np
import pytest

from client.scripted import MODEL, OK, TRAINING, UNAVAILABLE, error_status
from fedround.v1.model_pb2 import Model, UploadModelResponse
from fedround.v1.round_pb2 import GetUploadResponse, SubmitUpdateResponse, UpdateReceipt
from fedround_client import (
    ModelFormat,
    RequestBodyLimit,
    ServerUnavailable,
    to_safetensors,
)
from fedround_client.payload import CHUNK

pytestmark = pytest.mark.timeout(30)

STATE = {"w": np.arange(500_000, dtype=np.float32)}
FILE = to_safetensors(STATE)  # three chunks
DIGEST = hashlib.sha256(FILE).hexdigest()


def receipt():
    return SubmitUpdateResponse(receipt=UpdateReceipt(update_id="u", training_id=TRAINING, sha256=DIGEST))


def test_an_update_is_announced_then_sent_in_chunks(server):
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


SMALL = {"w": np.arange(1000, dtype=np.float32)}
SMALL_FILE = to_safetensors(SMALL)


def test_a_small_update_is_one_message(server):
    progress = []
    call = server.run(
        server.client.submit_update, TRAINING, 3, SMALL, 42, progress=lambda *sizes: progress.append(sizes)
    )
    rpc = server.upload("SubmitUpdate")
    message = rpc.take_request()
    assert (message.spec.num_examples, message.spec.size_bytes) == (42, len(SMALL_FILE))
    assert (message.chunk, message.chunk_crc32c) == (SMALL_FILE, google_crc32c.value(SMALL_FILE))
    rpc.requests_closed()
    rpc.terminate(receipt(), *OK)
    call.result(10)
    assert progress == [(len(SMALL_FILE), len(SMALL_FILE))]


def test_a_small_update_that_was_cut_is_sent_again(server):
    call = server.run(server.client.submit_update, TRAINING, 3, SMALL, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=1000))
    rpc = server.upload("SubmitUpdate")
    message = rpc.take_request()
    assert (message.spec.offset, message.chunk) == (1000, SMALL_FILE[1000:])
    rpc.terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"


@pytest.mark.parametrize("state", [SMALL, STATE], ids=["small", "large"])
def test_an_update_whose_progress_raises_is_not_submitted(server, state):
    def stop(*_):
        raise InterruptedError

    call = server.run(server.client.submit_update, TRAINING, 3, state, 42, progress=stop)
    if state is STATE:
        rpc = server.upload("SubmitUpdate")
        for _ in range(2):
            rpc.take_request()
    with pytest.raises(InterruptedError):
        call.result(10)


def test_a_cut_upload_resumes_at_the_servers_offset(server):
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


def test_an_incomplete_upload_resumes_and_a_lost_one_restarts(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *error_status(grpc.StatusCode.DATA_LOSS, "UPLOAD_INCOMPLETE"))
    server.reply("GetUpload", GetUploadResponse(committed_size=len(FILE)))  # which becomes a blob just then
    server.upload("SubmitUpdate").terminate(None, *error_status(grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_OFFSET"))
    server.reply("GetUpload", GetUploadResponse(committed_size=0))
    rpc = server.upload("SubmitUpdate")
    first, data = server.receive(rpc, len(FILE))
    rpc.terminate(receipt(), *OK)
    assert call.result(10).sha256 == DIGEST
    assert (first.spec.offset, data) == (0, FILE)


def test_an_upload_with_a_lost_response_is_repeated_without_bytes(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=len(FILE)))
    rpc = server.upload("SubmitUpdate")
    assert rpc.take_request().spec.offset == len(FILE)
    rpc.requests_closed()
    rpc.terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"


def test_an_upload_without_progress_fails_after_eight_attempts(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    for _ in range(7):
        server.fail("GetUpload", UNAVAILABLE)
    assert isinstance(call.exception(10), ServerUnavailable)


def test_progress_resets_the_attempts(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    for committed in range(1, 30):
        server.reply("GetUpload", GetUploadResponse(committed_size=committed))
        server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    server.reply("GetUpload", GetUploadResponse(committed_size=30))
    server.upload("SubmitUpdate").terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"


def test_the_back_off_grows_with_full_jitter_up_to_half_a_minute(server, monkeypatch):
    drawn = []
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda low, high: drawn.append((low, high)) or high)
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *UNAVAILABLE)
    for _ in range(7):
        server.fail("GetUpload", UNAVAILABLE)
    call.exception(10)
    waits = (0.5, 1, 2, 4, 8, 16, 30)
    assert drawn[:7] == [(0, high) for high in waits]
    assert server.time.time() == 1000 + sum(waits)


def test_retry_info_is_respected_with_additional_jitter(server, monkeypatch):
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda low, high: high)
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    busy = error_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS", retry=7.25)
    server.upload("SubmitUpdate").terminate(None, *busy)
    server.reply("GetUpload", GetUploadResponse(committed_size=0))
    assert server.time.time() == 1000 + 7.25 + 0.5
    server.upload("SubmitUpdate").terminate(None, *busy)
    server.reply("GetUpload", GetUploadResponse(committed_size=len(FILE)))
    assert server.time.time() == 1000 + 2 * 7.25 + 0.5 + 1
    server.upload("SubmitUpdate").terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "INVALID_ARGUMENT"])
def test_a_rejected_upload_is_not_repeated(server, code):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *error_status(grpc.StatusCode[code], "SOME_REASON"))
    assert call.exception(10).reason == "SOME_REASON"
    assert server.time.time() == 1000


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


def test_the_servers_message_about_the_format_is_raised(server, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILE)
    call = server.run(server.client.upload_model, path)
    status = error_status(grpc.StatusCode.INVALID_ARGUMENT, "MODEL_FORMAT", "run `fedround convert`")
    server.upload("UploadModel").terminate(None, *status)
    error = call.exception(10)
    assert isinstance(error, ModelFormat)
    assert "fedround convert" in str(error)


def test_every_chunk_has_a_checksum(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    rpc = server.upload("SubmitUpdate")
    rpc.take_request()
    for message in (rpc.take_request() for _ in range(3)):
        assert message.chunk_crc32c == google_crc32c.value(message.chunk)
    rpc.terminate(receipt(), *OK)
    call.result(10)


def test_a_damaged_upload_resumes_at_the_servers_offset(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    server.upload("SubmitUpdate").terminate(None, *error_status(grpc.StatusCode.DATA_LOSS, "CHUNK_CORRUPT"))
    server.reply("GetUpload", GetUploadResponse(committed_size=CHUNK))
    rpc = server.upload("SubmitUpdate")
    first, rest = server.receive(rpc, len(FILE) - CHUNK)
    rpc.terminate(receipt(), *OK)
    assert call.result(10).sha256 == DIGEST
    assert first.spec.offset == CHUNK
    assert rest == FILE[CHUNK:]


TOO_LARGE = ((), grpc.StatusCode.UNKNOWN, "Received http2 header with status: 413")
INCOMPLETE = error_status(grpc.StatusCode.DATA_LOSS, "UPLOAD_INCOMPLETE")


def test_an_upload_through_a_proxy_with_a_limit_is_split(server, caplog):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    rpc = server.upload("SubmitUpdate")
    server.receive(rpc, len(FILE))
    rpc.requests_closed()
    rpc.terminate(None, *TOO_LARGE)
    arrived, streams = b"", 0
    while len(arrived) < len(FILE):
        server.reply("GetUpload", GetUploadResponse(committed_size=len(arrived)))
        rpc = server.upload("SubmitUpdate")
        first, data = server.receive(rpc, min(CHUNK, len(FILE) - len(arrived)))
        rpc.requests_closed()
        assert first.spec.offset == len(arrived)
        arrived += data
        streams += 1
        rpc.terminate(*((receipt(), *OK) if len(arrived) == len(FILE) else (None, *INCOMPLETE)))
    assert call.result(10).sha256 == DIGEST
    assert (arrived, streams) == (FILE, 3)
    assert server.time.time() == 1000  # without back-off
    (record,) = caplog.records
    assert "client_max_body_size" in record.getMessage()


def test_a_proxy_that_takes_no_chunk_ends_the_upload(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    for size in (len(FILE), CHUNK):
        rpc = server.upload("SubmitUpdate")
        server.receive(rpc, size)
        rpc.requests_closed()
        rpc.terminate(None, *TOO_LARGE)
        if size > CHUNK:
            server.reply("GetUpload", GetUploadResponse(committed_size=0))
    assert type(call.exception(10)) is RequestBodyLimit


def test_a_split_upload_that_makes_no_progress_is_tried_again_later(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    for status in (TOO_LARGE, INCOMPLETE):
        rpc = server.upload("SubmitUpdate")
        server.receive(rpc, CHUNK)
        rpc.terminate(None, *status)
        server.reply("GetUpload", GetUploadResponse(committed_size=0))
    server.reply("GetUpload", GetUploadResponse(committed_size=len(FILE)))
    assert server.time.time() > 1000
    server.upload("SubmitUpdate").terminate(receipt(), *OK)
    assert call.result(10).update_id == "u"
