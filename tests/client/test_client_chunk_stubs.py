"""Stubs with the chunk codec send the same bytes as protobuf."""

from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import grpc
import pytest

from fedround.v1 import model_pb2, model_pb2_grpc
from fedround_client.chunk_stubs import whole_upload, with_chunk_codec
from fedround_wire.chunk_codec import ChunkMessage

CHUNK = b"\x00\xff" * 100_000
CRC = google_crc32c.value(CHUNK)
SERVICE = "fedround.v1.ModelService"
UPLOAD_MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"].methods_by_name["UploadModel"]


@pytest.fixture
def raw():
    """A server that works with raw bytes, and the messages that it received."""
    received = []

    def take(messages, _):
        received.extend(messages)
        return model_pb2.UploadModelResponse(model={"name": "m"}).SerializeToString()

    def give(request, _):
        received.append(request)
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
        models = with_chunk_codec(model_pb2_grpc.ModelServiceStub(channel), channel, model_pb2.DESCRIPTOR)
        models.whole = whole_upload(channel, UPLOAD_MODEL)
        yield models, received
    server.stop(None)


def test_an_upload_mixes_protobuf_and_chunk_messages(raw):
    models, received = raw
    first = model_pb2.UploadModelRequest(spec={"name": "m"})
    compressed = model_pb2.UploadModelRequest(chunk=CHUNK, chunk_crc32c=CRC, compression="COMPRESSION_GZIP")
    response = models.UploadModel(iter([first, ChunkMessage(CHUNK, CRC), compressed]), timeout=10)
    assert response == model_pb2.UploadModelResponse(model={"name": "m"})
    plain = model_pb2.UploadModelRequest(chunk=CHUNK, chunk_crc32c=CRC)
    assert [model_pb2.UploadModelRequest.FromString(message) for message in received] == [first, plain, compressed]


def test_a_whole_upload_is_one_message_with_the_spec(raw):
    models, received = raw
    head = model_pb2.UploadModelRequest(spec={"name": "m"})
    models.whole(ChunkMessage(CHUNK, CRC, spec=head.spec), timeout=10)
    models.whole(head, timeout=10)
    whole = model_pb2.UploadModelRequest(spec=head.spec, chunk=CHUNK, chunk_crc32c=CRC)
    assert received == [whole.SerializeToString(), head.SerializeToString()]


def test_a_download_returns_chunk_messages_for_plain_chunks(raw):
    models, received = raw
    request = model_pb2.DownloadModelRequest(model_id="m", offset=1)
    messages = list(models.DownloadModel(request, timeout=10))
    assert received == [request.SerializeToString()]
    assert messages[0].info.version == 3
    assert messages[1] == ChunkMessage(CHUNK, CRC)
    assert messages[2] == model_pb2.DownloadModelResponse(chunk=CHUNK)


def test_other_methods_are_unchanged(raw):
    models, _ = raw
    assert models.GetModel(model_pb2.GetModelRequest(), timeout=10).model.name == "m"
