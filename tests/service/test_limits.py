"""Limits on the calls that a user has in progress at the same time."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from calls import TIMEOUT, Person, fails_with, read_error, update_chunks
from fedround.v1 import model_pb2, training_pb2
from servers import Server


def test_uploads_of_one_user(person: Callable[..., Person]) -> None:
    actor = person("ACTOR")
    spec = training_pb2.TrainingSpec(name="t", target_num_updates=1)
    hanging = [_Hanging(actor, training_pb2.CreateTrainingRequest(spec=spec)) for _ in range(20)]
    try:
        # The 20 may not have arrived yet: those that come too early fail for their missing file instead.
        reasons: set[str] = set()
        while "TOO_MANY_UPLOADS" not in reasons:
            try:
                actor.trainings.CreateTraining(iter([training_pb2.CreateTrainingRequest(spec=spec)]), timeout=TIMEOUT)
            except grpc.RpcError as error:
                details = read_error(error)
                reasons.add(details.reason)
                if details.reason == "TOO_MANY_UPLOADS":
                    assert "RetryInfo" in details.details
                    assert details.metadata == {"limit": "max_uploads_per_user"}
        assert reasons <= {"TOO_MANY_UPLOADS", "FIELD_INVALID"}
    finally:
        for upload in hanging:
            upload.cancel()


class _Hanging:
    """An upload that never continues."""

    def __init__(self, actor: Person, message: Any) -> None:
        self._end = threading.Event()

        def messages() -> Any:
            yield message
            self._end.wait(TIMEOUT)

        self._call = actor.trainings.CreateTraining.future(messages(), timeout=TIMEOUT)

    def cancel(self) -> None:
        self._call.cancel()
        self._end.set()


def test_subscriptions_of_one_user(actor: Person, clients: list[Person]) -> None:
    first, second, _ = clients
    made = actor.create(client_ids=[first.user_id, second.user_id])
    actor.start(made.training_id)
    streams = [first.subscribe() for _ in range(20)]
    with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", "20 subscriptions") as error:
        next(first.subscribe(made.training_id))
    assert {"QuotaFailure", "RetryInfo"} <= set(error.details.details)
    assert error.details.metadata == {"limit": "max_subscriptions_per_user"}
    assert next(second.subscribe(made.training_id)).HasField("round_started")
    for stream in streams:
        stream.cancel()
    until_there_is_room(lambda: next(first.subscribe(made.training_id)))


@pytest.fixture
def slow(server: Server, actor: Person) -> Iterator[Person]:
    """The actor over a connection that buffers no more than what is read."""
    with grpc.insecure_channel(server.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        yield Person(channel, actor.token)


def test_downloads_of_one_user(actor: Person, slow: Person) -> None:
    data = save({"w": np.zeros(700_000, np.float32)})
    chunks = [model_pb2.UploadModelRequest(chunk=one.chunk) for one in update_chunks(data)]
    messages = [model_pb2.UploadModelRequest(spec=model_pb2.ModelSpec(name="m")), *chunks]
    made = actor.models.UploadModel(iter(messages), timeout=TIMEOUT).model
    request = model_pb2.DownloadModelRequest(model_id=made.model_id)
    streams = [slow.models.DownloadModel(request, timeout=TIMEOUT) for _ in range(4)]
    assert all(next(stream).HasField("info") for stream in streams)
    with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", "4 downloads"):
        next(actor.models.DownloadModel(request))
    for stream in streams:
        stream.cancel()
    until_there_is_room(lambda: list(actor.models.DownloadModel(request, timeout=TIMEOUT)))


def until_there_is_room(call: Callable[[], Any]) -> None:
    """Calls until the server has seen that other calls ended."""
    while True:
        try:
            call()
            return
        except grpc.RpcError as error:
            if read_error(error).reason != "TOO_MANY_STREAMS":
                raise
