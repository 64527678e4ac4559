"""Downloads that are cut, damaged, or not needed."""

import hashlib

import google_crc32c
import grpc
import numpy as np
import pytest

from client.rounds import file_of, info_of
from client.scripted import MODEL, OK, UNAVAILABLE, chunk_response, cut, error_status, is_cancelled
from fedround.v1.event_pb2 import ModelInfo
from fedround.v1.model_pb2 import MODEL_PART_POSTERIOR, DownloadModelResponse
from fedround_client import (
    DigestMismatch,
    ModelNotFound,
    ServerUnavailable,
    to_safetensors,
)
from fedround_client.payload import CHUNK

pytestmark = pytest.mark.timeout(30)

STATE = {"w": np.arange(500_000, dtype=np.float32)}
FILE = to_safetensors(STATE)  # three chunks
DIGEST = hashlib.sha256(FILE).hexdigest()


def info(version=4, sha256=DIGEST):
    return ModelInfo(model_id=MODEL, version=version, sha256=sha256, size_bytes=len(FILE))


def send(rpc, data, **options):
    rpc.send_response(DownloadModelResponse(info=info(**options)))
    for start in range(0, len(data), CHUNK):
        rpc.send_response(chunk_response(DownloadModelResponse, data[start : start + CHUNK]))


def test_a_cut_download_resumes_with_the_same_version(server):
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


def test_a_download_by_tag_resumes_with_the_same_version(server):
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


def test_a_download_that_ends_early_resumes(server):
    call = server.run(server.client.download_model, MODEL, 4)
    _, rpc = server.stream("DownloadModel")
    send(rpc, FILE[:1000])
    rpc.terminate(*OK)
    request, rpc = server.stream("DownloadModel")
    assert request.offset == 1000
    send(rpc, FILE[1000:])
    rpc.terminate(*OK)
    np.testing.assert_array_equal(call.result(10)["w"], STATE["w"])


def test_a_download_fails_after_eight_attempts(server):
    call = server.run(server.client.download_model, MODEL, 4)
    for _ in range(8):
        server.stream("DownloadModel")[1].terminate(*UNAVAILABLE)
    assert isinstance(call.exception(10), ServerUnavailable)


@pytest.mark.parametrize("wrong", [google_crc32c.value(FILE[1001:2000]), None])
def test_a_damaged_chunk_is_downloaded_again(server, wrong):
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
def test_damaged_bytes_are_not_returned(server, tmp_path, to_file):
    target = tmp_path / "model.safetensors"
    call = server.run(server.client.download_model, MODEL, 4, to=target if to_file else None)
    _, rpc = server.stream("DownloadModel")
    send(rpc, FILE[:-1] + b"\xff")
    rpc.terminate(*OK)
    assert isinstance(call.exception(10), DigestMismatch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("announced", [True, False])
def test_bytes_beyond_the_announced_size_are_rejected(server, announced):
    call = server.run(server.client.download_model, MODEL, 4)
    _, rpc = server.stream("DownloadModel")
    if announced:
        send(rpc, FILE)
    rpc.send_response(DownloadModelResponse(chunk=b"x"))
    # The server does not end the stream: the client does.
    assert isinstance(call.exception(10), DigestMismatch)
    assert is_cancelled(rpc)


def test_a_file_is_replaced_when_the_download_is_complete(server, tmp_path):
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


def test_an_existing_file_is_not_downloaded_again(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(file_of(4))
    before = target.stat()
    call = server.run(server.client.download_model, MODEL, to=target)
    request, rpc = server.stream("DownloadModel")
    assert request.have_sha256 == hashlib.sha256(file_of(4)).hexdigest()
    rpc.send_response(DownloadModelResponse(info=info_of(4, file_of(4)), unchanged=True))
    assert call.result(10) == target
    assert target.stat() == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_of_an_existing_file_is_cancelled(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(file_of(4))
    call = server.run(server.client.download_model, MODEL, to=target)
    _, rpc = server.stream("DownloadModel")
    rpc.send_response(chunk_response(DownloadModelResponse, file_of(4)[:40], info=info_of(4, file_of(4))))
    assert call.result(10) == target
    assert is_cancelled(rpc)
    assert target.read_bytes() == file_of(4)


def test_unchanged_is_accepted_for_the_same_file_only(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"another")
    call = server.run(server.client.download_model, MODEL, to=target)
    for _ in range(8):
        _, rpc = server.stream("DownloadModel")
        rpc.send_response(DownloadModelResponse(info=info_of(4, file_of(4)), unchanged=True))
        rpc.terminate(*OK)
    assert isinstance(call.exception(10), ServerUnavailable)
    assert target.read_bytes() == b"another"


def test_a_download_on_which_the_server_stays_silent_is_resumed(server, caplog):
    call = server.run(server.client.download_model, MODEL)
    _, rpc = server.stream("DownloadModel")
    server.alarm_in(60)
    server.time.sleep_for(60)
    rpc.cancelled()
    server.stream("DownloadModel")[1].terminate(*error_status(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
    assert type(call.exception(10)) is ModelNotFound
    (record,) = caplog.records
    assert "The server at there:1 sent nothing for 60 s" in record.getMessage()
