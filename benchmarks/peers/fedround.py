"""fedround: a server with all that it does by default, and lean clients that check and hash as those of the SDK do.

They hold the model in the chunks that it came in, and call the generated stubs. fedround_sdk has clients of the SDK.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import google_crc32c

import fedround_client as fr
from fedround.v1 import model_pb2, round_pb2
from fedround.v1.model_pb2 import DownloadModelRequest
from fedround.v1.model_pb2_grpc import ModelServiceStub
from fedround.v1.round_pb2 import SubmitUpdateRequest, SubscribeRequest, UpdateSpec
from fedround.v1.round_pb2_grpc import RoundServiceStub
from fedround_client.channel import open_channel
from fedround_client.chunk_stubs import with_chunk_codec
from fedround_client.participant import MAX_FREED_BLOCK, TRIM_THRESHOLD
from fedround_client.subscription import INLINE_MODEL_BYTES
from fedround_wire.allocator import keep_freed
from fedround_wire.chunk_codec import ChunkMessage
from measure import fedround_server
from peers.common import Processes, Workload, tell, tell_end, tell_round

TakePart = Callable[[int, str, str, str], None]


def take_part(number: int, address: str, token: str, training_id: str) -> None:
    keep_freed(MAX_FREED_BLOCK, TRIM_THRESHOLD)
    metadata = (("authorization", f"Bearer {token}"),)
    with open_channel(address) as channel:
        rounds = with_chunk_codec(RoundServiceStub(channel), channel, round_pb2.DESCRIPTOR)
        models = with_chunk_codec(ModelServiceStub(channel), channel, model_pb2.DESCRIPTOR)
        subscribe = SubscribeRequest(training_id=training_id, inline_model_bytes=INLINE_MODEL_BYTES)
        for event in rounds.Subscribe(subscribe, metadata=metadata):
            if event.WhichOneof("payload") != "round_started":
                continue
            info = event.round_started.model
            request = DownloadModelRequest(model_id=info.model_id, version=info.version)
            inline = event.round_started.inline_model
            chunks = [inline] if inline else []
            for message in () if inline else models.DownloadModel(request, metadata=metadata):
                chunk = message.chunk
                if chunk:
                    assert message.chunk_crc32c == google_crc32c.value(chunk)
                    chunks.append(chunk)
            assert digest(chunks) == info.sha256
            chunks[0] = changed(chunks[0], number)
            spec = UpdateSpec(
                training_id=training_id,
                round=event.round_started.round,
                num_examples=1,
                sha256=digest(chunks),
                size_bytes=info.size_bytes,
            )
            rounds.SubmitUpdate(messages(spec, chunks), metadata=metadata)


def digest(chunks: list[bytes]) -> str:
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()


def changed(chunk: bytes, number: int) -> bytes:
    """Does to a file's first chunk what `touch` does to layers."""
    data = bytearray(chunk)
    (header,) = struct.unpack_from("<Q", data)
    (first,) = struct.unpack_from("<f", data, 8 + header)
    struct.pack_into("<f", data, 8 + header, first + number + 1)
    return bytes(data)


def messages(spec: UpdateSpec, chunks: list[bytes]) -> Iterator[SubmitUpdateRequest | ChunkMessage]:
    yield SubmitUpdateRequest(spec=spec)
    for chunk in chunks:
        yield ChunkMessage(chunk, google_crc32c.value(chunk))


def run(workload: Workload, take_part: TakePart = take_part, **spec: Any) -> None:
    """Runs one training; `spec` goes to `create_training`."""
    tell("version", version("fedround"))
    processes = Processes()
    with (
        fedround_server(workload.folder / "data") as server,
        fr.connect(server.address, server.token) as actor,
    ):
        tell("server", server.pid)
        created = [actor.create_user(f"client {number}", "CLIENT") for number in range(workload.clients)]
        training = actor.create_training(
            {f"layer{number}": layer for number, layer in enumerate(workload.layers())},
            name="benchmark",
            target_num_updates=workload.rounds,
            client_ids=[user.user_id for user, _ in created],
            **spec,
        )
        for number, (_, token) in enumerate(created):
            processes.start("client", take_part, number, server.address, token, training.training_id)
        actor.start_training(training.training_id)
        for event in actor.watch(training.training_id):
            if event.WhichOneof("payload") == "round_started":
                tell_round()
        tell_end()
        tell("first", actor.download_model(training.model_id)["layer0"][0])
        processes.join()
