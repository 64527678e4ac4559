"""Chunks that are packed on their way, by a scripted server."""

import gzip
import tracemalloc
import zlib

import google_crc32c
import numpy as np
import pytest

from client.scripted import MODEL, OK, TRAINING, Server, piece
from fedround.v1.event_pb2 import PACKING_GZIP, PACKING_UNSPECIFIED, ModelInfo
from fedround.v1.model_pb2 import DownloadModelResponse
from fedround.v1.round_pb2 import SubmitUpdateResponse
from fedround_client import ChunkCorrupt, Client, to_safetensors
from fedround_client.transfer import CHUNK, Payload

pytestmark = pytest.mark.timeout(30)

# The first chunk gets smaller, the other one does not.
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


def test_chunks_are_packed_if_that_makes_them_smaller(server):
    call = server.run(server.client.submit_update, TRAINING, 3, STATE, 42)
    rpc = server.upload("SubmitUpdate")
    assert rpc.take_request().spec.size_bytes == len(FILE)
    data, ways = b"", []
    while len(data) < len(FILE):
        message = rpc.take_request()
        chunk = gzip.decompress(message.chunk) if message.packing == PACKING_GZIP else message.chunk
        assert message.chunk_crc32c == google_crc32c.value(chunk)
        data += chunk
        ways.append(message.packing)
    rpc.terminate(SubmitUpdateResponse(), *OK)
    call.result(10)
    assert data == FILE
    assert ways == [PACKING_GZIP, PACKING_UNSPECIFIED, PACKING_UNSPECIFIED][: len(ways)]
    assert PACKING_UNSPECIFIED in ways


def packed(chunk, data=None):
    data = gzip.compress(chunk) if data is None else data
    return DownloadModelResponse(chunk=data, chunk_crc32c=google_crc32c.value(chunk), packing=PACKING_GZIP)


def test_packed_and_plain_chunks_make_the_same_model(server):
    call = server.run(server.client.download_model, MODEL)
    request, rpc = server.stream("DownloadModel")
    assert request.packing == PACKING_GZIP
    rpc.send_response(DownloadModelResponse(info=INFO))
    rpc.send_response(packed(FILE[:CHUNK]))
    rpc.send_response(piece(DownloadModelResponse, FILE[CHUNK : CHUNK + 1000]))
    rpc.send_response(packed(FILE[CHUNK + 1000 :]))
    rpc.terminate(*OK)
    np.testing.assert_array_equal(call.result(10)["z"], NOISE)


@pytest.mark.parametrize(
    "data",
    [
        b"not packed",
        gzip.compress(FILE[:1000], mtime=0)[:-1],
        gzip.compress(FILE[:1000], mtime=0) + b"more",
        zlib.compress(FILE[:1000]),
        gzip.compress(bytes(64 << 20), 9, mtime=0),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_does_not_unpack_is_fetched_again_and_at_last_given_up(server, data):
    tracemalloc.start()
    try:
        call = server.run(server.client.download_model, MODEL)
        for _ in range(8):
            request, rpc = server.stream("DownloadModel")
            assert request.offset == 0
            rpc.send_response(DownloadModelResponse(info=INFO))
            rpc.send_response(packed(FILE[:1000], data))
        assert isinstance(call.exception(10), ChunkCorrupt)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
