"""The chunk codec encodes and decodes as protobuf does."""

import google_crc32c
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from fedround.v1 import model_pb2, round_pb2, training_pb2
from fedround_server.counters import Counters
from fedround_server.grpc_server import SERVICES
from fedround_server.interceptors.chunk_codec import ChunkCodecInterceptor
from fedround_wire.chunk_codec import ChunkCodec, ChunkMessage

MESSAGES: list[type[Message]] = [
    training_pb2.CreateTrainingRequest,
    model_pb2.UploadModelRequest,
    round_pb2.SubmitUpdateRequest,
    model_pb2.DownloadModelResponse,
    round_pb2.DownloadAssignedModelResponse,
    round_pb2.DownloadControlResponse,
]
chunks = st.binary(max_size=300) | st.integers(1, 1 << 20).map(lambda size: b"\xff" * size)


def test_streams_of_chunks_are_found() -> None:
    found = ChunkCodecInterceptor(SERVICES, Counters())
    assert found.uploads.keys() == {
        "/fedround.v1.TrainingService/CreateTraining",
        "/fedround.v1.ModelService/UploadModel",
        "/fedround.v1.RoundService/SubmitUpdate",
    }
    assert found.downloads.keys() == {
        "/fedround.v1.ModelService/DownloadModel",
        "/fedround.v1.RoundService/DownloadAssignedModel",
        "/fedround.v1.RoundService/DownloadControl",
    }
    assert found.events == {"/fedround.v1.RoundService/Subscribe"}


@pytest.mark.parametrize("message", MESSAGES)
@given(chunk=chunks, crc=st.integers(0, 2**32 - 1))
def test_chunk_messages_are_encoded_as_by_protobuf(message: type[Message], chunk: bytes, crc: int) -> None:
    codec = ChunkCodec(message.DESCRIPTOR)
    written = codec.encode(ChunkMessage(chunk, crc))
    assert message.FromString(written) == message(chunk=chunk, chunk_crc32c=crc)
    if chunk:
        assert written == message(chunk=chunk, chunk_crc32c=crc).SerializeToString()
    assert codec.decode(written) == ChunkMessage(chunk, crc)


@pytest.mark.parametrize("message", MESSAGES)
@given(data=st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x12" + rest))
def test_chunk_messages_are_decoded_as_by_protobuf(message: type[Message], data: bytes) -> None:
    decoded = ChunkCodec(message.DESCRIPTOR).decode(data)
    if decoded is not None:
        assert message.FromString(data) == message(chunk=decoded.chunk, chunk_crc32c=decoded.chunk_crc32c)


def test_other_messages_are_left_to_protobuf() -> None:
    codec = ChunkCodec(model_pb2.UploadModelRequest.DESCRIPTOR)
    chunk = b"chunk"
    encoded = codec.encode(ChunkMessage(chunk, google_crc32c.value(chunk)))
    with_spec = model_pb2.UploadModelRequest(spec=model_pb2.ModelSpec(name="a"), chunk=chunk, chunk_crc32c=1)
    without_crc = model_pb2.UploadModelRequest(chunk=chunk)
    for data in (b"", with_spec.SerializeToString(), without_crc.SerializeToString(), encoded[:-1], encoded + b"\x1d"):
        assert codec.decode(data) is None
    assert not ChunkMessage(chunk, 1).HasField("spec")
    assert ChunkMessage(chunk, 1).HasField("chunk_crc32c")
