"""The chunk codec encodes and decodes as protobuf does."""

import google_crc32c
import pytest
from google.protobuf.message import DecodeError, Message
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


@given(chunk=st.binary(min_size=1, max_size=300), crc=st.integers(1, 2**32 - 1), size=st.integers(0, 300))
def test_a_first_message_is_decoded_as_by_protobuf(chunk: bytes, crc: int, size: int) -> None:
    sent = round_pb2.SubmitUpdateRequest(spec=round_pb2.UpdateSpec(sha256="a" * size), chunk=chunk, chunk_crc32c=crc)
    decode = ChunkCodec(sent.DESCRIPTOR).deserializer(round_pb2.SubmitUpdateRequest.FromString)
    message = decode(sent.SerializeToString())
    assert message == ChunkMessage(chunk, crc, 0, sent.spec)
    assert message.HasField("spec")
    assert message.HasField("chunk_crc32c")


@given(data=st.binary(max_size=40).map(lambda rest: b"\x0a" + rest), chunk=st.binary(max_size=5))
def test_what_looks_like_a_first_message_is_decoded_as_by_protobuf(data: bytes, chunk: bytes) -> None:
    data += ChunkCodec(round_pb2.SubmitUpdateRequest.DESCRIPTOR).encode(ChunkMessage(chunk, 1))
    decode = ChunkCodec(round_pb2.SubmitUpdateRequest.DESCRIPTOR).deserializer(round_pb2.SubmitUpdateRequest.FromString)
    try:
        expected = round_pb2.SubmitUpdateRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode(data)
        return
    message = decode(data)
    assert (message.spec, message.chunk, message.chunk_crc32c) == (expected.spec, expected.chunk, expected.chunk_crc32c)


def test_a_first_message_with_other_fields_is_left_to_protobuf() -> None:
    sent = training_pb2.CreateTrainingRequest(spec=training_pb2.TrainingSpec(name="a"), chunk=b"chunk", chunk_crc32c=1)
    decode = ChunkCodec(sent.DESCRIPTOR).deserializer(training_pb2.CreateTrainingRequest.FromString)
    assert decode(sent.SerializeToString()) == sent
