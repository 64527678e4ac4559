"""The SDK writes and reads chunks as frames, and what goes over the wire is what protobuf writes."""

from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import grpc
import pytest

from fedround.v1 import model_pb2, model_pb2_grpc
from fedround_client.chunk_stubs import with_chunk_codec
from fedround_wire.chunk_codec import ChunkMessage

CHUNK = b"\x00\xff" * 100_000
CRC = google_crc32c.value(CHUNK)
SERVICE = "fedround.v1.ModelService"


@pytest.fixture
def raw():
    """A server that keeps and answers bytes, and what it got."""
    got = []

    def take(messages, _):
        got.extend(messages)
        return model_pb2.UploadModelResponse(model={"name": "m"}).SerializeToString()

    def give(request, _):
        got.append(request)
        yield model_pb2.DownloadModelResponse(info={"version": 3}).SerializeToString()
        yield model_pb2.DownloadModelResponse(chunk=CHUNK, chunk_crc32c=CRC).SerializeToString()
        yield model_pb2.DownloadModelResponse(chunk=CHUNK).SerializeToString()

    def answer(request, _):
        return model_pb2.GetModelResponse(model={"name": "m"}).SerializeToString()

    handlers = {
        "UploadModel": grpc.stream_unary_rpc_method_handler(take),
        "DownloadModel": grpc.unary_stream_rpc_method_handler(give),
        "GetModel": grpc.unary_unary_rpc_method_handler(answer),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield with_chunk_codec(model_pb2_grpc.ModelServiceStub(channel), channel, model_pb2.DESCRIPTOR), got
    server.stop(None)


def test_an_upload_mixes_messages_and_frames(raw):
    models, got = raw
    first = model_pb2.UploadModelRequest(spec={"name": "m"})
    packed = model_pb2.UploadModelRequest(chunk=CHUNK, chunk_crc32c=CRC, packing="PACKING_GZIP")
    response = models.UploadModel(iter([first, ChunkMessage(CHUNK, CRC), packed]), timeout=10)
    assert response == model_pb2.UploadModelResponse(model={"name": "m"})
    framed = model_pb2.UploadModelRequest(chunk=CHUNK, chunk_crc32c=CRC)
    assert [model_pb2.UploadModelRequest.FromString(message) for message in got] == [first, framed, packed]


def test_a_download_gives_frames_of_what_is_a_chunk_alone(raw):
    models, got = raw
    request = model_pb2.DownloadModelRequest(model_id="m", offset=1)
    messages = list(models.DownloadModel(request, timeout=10))
    assert got == [request.SerializeToString()]
    assert messages[0].info.version == 3
    assert messages[1] == ChunkMessage(CHUNK, CRC)
    assert messages[2] == model_pb2.DownloadModelResponse(chunk=CHUNK)


def test_other_methods_stay_as_they_are(raw):
    models, _ = raw
    assert models.GetModel(model_pb2.GetModelRequest(), timeout=10).model.name == "m"
