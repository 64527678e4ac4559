"""Compressed chunks, with a scripted server."""

import gzip
import tracemalloc
import zlib

import google_crc32c
import numpy as np
import pytest

from client.scripted import MODEL, OK, TRAINING, Server, chunk_response
from fedround.v1.event_pb2 import COMPRESSION_GZIP, COMPRESSION_UNSPECIFIED, ModelInfo
from fedround.v1.model_pb2 import DownloadModelResponse
from fedround.v1.round_pb2 import SubmitUpdateResponse
from fedround_client import ChunkCorrupt, Client, to_safetensors
from fedround_client.payload import CHUNK, Payload

pytestmark = pytest.mark.timeout(30)

# Compression makes only the first chunk smaller.
NOISE = np.random.default_rng(1).integers(0, 256, CHUNK, np.uint8)
STATE = {"w": np.zeros(CHUNK // 8), "z": NOISE}
FILE = to_safetensors(STATE)
PAYLOAD = Payload.of(STATE)
INFO = ModelInfo(model_id=MODEL, version=4, sha256=PAYLOAD.sha256, size_bytes=PAYLOAD.size_bytes)


@pytest.fixture
def server():
    made = Server()
    made.client = Client(made.channel, "secret", address="there:1", clock=made.time, compression="gzip")
    return made


def test_chunks_are_compressed_if_that_makes_them_smaller(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    rpc = server.upload("SubmitUpdate")
    assert rpc.take_request().spec.size_bytes == len(FILE)
    data, methods = b"", []
    while len(data) < len(FILE):
        message = rpc.take_request()
        chunk = gzip.decompress(message.chunk) if message.compression == COMPRESSION_GZIP else message.chunk
        assert message.chunk_crc32c == google_crc32c.value(chunk)
        data += chunk
        methods.append(message.compression)
    rpc.terminate(SubmitUpdateResponse(), *OK)
    call.result(10)
    assert data == FILE
    assert methods == [COMPRESSION_GZIP, COMPRESSION_UNSPECIFIED, COMPRESSION_UNSPECIFIED][: len(methods)]
    assert COMPRESSION_UNSPECIFIED in methods


def compressed(chunk, data=None):
    data = gzip.compress(chunk) if data is None else data
    return DownloadModelResponse(chunk=data, chunk_crc32c=google_crc32c.value(chunk), compression=COMPRESSION_GZIP)


def test_compressed_and_plain_chunks_can_be_mixed(server):
    call = server.run(server.client.download_model, MODEL)
    request, rpc = server.stream("DownloadModel")
    assert request.compression == COMPRESSION_GZIP
    rpc.send_response(DownloadModelResponse(info=INFO))
    rpc.send_response(compressed(FILE[:CHUNK]))
    rpc.send_response(chunk_response(DownloadModelResponse, FILE[CHUNK : CHUNK + 1000]))
    rpc.send_response(compressed(FILE[CHUNK + 1000 :]))
    rpc.terminate(*OK)
    np.testing.assert_array_equal(call.result(10)["z"], NOISE)


@pytest.mark.parametrize(
    "data",
    [
        b"not compressed",
        gzip.compress(FILE[:1000], mtime=0)[:-1],
        gzip.compress(FILE[:1000], mtime=0) + b"more",
        zlib.compress(FILE[:1000]),
        gzip.compress(bytes(64 << 20), 9, mtime=0),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_chunks_that_cannot_be_decompressed_are_retried_then_fail(server, data):
    tracemalloc.start()
    try:
        call = server.run(server.client.download_model, MODEL)
        for _ in range(8):
            request, rpc = server.stream("DownloadModel")
            assert request.offset == 0
            rpc.send_response(DownloadModelResponse(info=INFO))
            rpc.send_response(compressed(FILE[:1000], data))
        assert isinstance(call.exception(10), ChunkCorrupt)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
