"""A server whose disk really is full: nothing breaks, and it goes on when there is room."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import TIMEOUT, Person, digest, download, fails_with, new_id, until, update_chunks
from fedround.v1 import model_pb2, round_pb2, training_pb2
from servers import Server

CHUNK = 1 << 20


def file_of(value: float) -> bytes:
    """A model of 4 MB."""
    return save({"w": np.full(1_000_000, value, np.float32)})


class Filler:
    """A file that leaves a given amount of a disk free."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._path = disk / "filler"

    def leave(self, free: int) -> None:
        disk = os.statvfs(self._disk)
        with self._path.open("ab") as file:
            file.write(bytes(disk.f_bavail * disk.f_frsize - free))

    def remove(self) -> None:
        self._path.unlink()


@pytest.fixture
def filler(small_disk: Path) -> Filler:
    return Filler(small_disk)


@pytest.fixture
def server(small_disk: Path) -> Iterator[Server]:
    with Server(small_disk / "data", options=("--min-free-bytes", "0")) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def test_an_upload_that_fills_the_disk_goes_on_when_there_is_room(admin: Person, filler: Filler) -> None:
    data, upload_id = file_of(1), new_id()
    spec = model_pb2.ModelSpec(sha256=digest(data), size_bytes=len(data), upload_id=upload_id)
    chunks = [model_pb2.UploadModelRequest(chunk=one.chunk) for one in update_chunks(data)]
    full = threading.Event()

    def committed() -> int:
        return admin.rounds.GetUpload(round_pb2.GetUploadRequest(upload_id=upload_id)).committed_size

    def messages() -> Iterator[model_pb2.UploadModelRequest]:
        yield model_pb2.UploadModelRequest(spec=spec)
        yield chunks[0]
        full.wait()
        yield from chunks[1:]

    call = admin.models.UploadModel.future(messages(), timeout=TIMEOUT)
    until(lambda: committed() == CHUNK)
    filler.leave(CHUNK * 3 // 2)
    full.set()
    with fails_with("RESOURCE_EXHAUSTED", "DISK_FULL", "the server's disk is full") as error:
        call.result()
    assert "RetryInfo" in error.details.details
    assert committed() == 2 * CHUNK
    with fails_with("RESOURCE_EXHAUSTED", "DISK_FULL", "almost full"):
        other = model_pb2.UploadModelRequest(spec=model_pb2.ModelSpec(size_bytes=len(data)))
        admin.models.UploadModel(iter([other]), timeout=TIMEOUT)
    filler.remove()
    spec.offset = 2 * CHUNK
    head = model_pb2.UploadModelRequest(spec=spec)
    model = admin.models.UploadModel(iter([head, *chunks[2:]]), timeout=TIMEOUT).model
    assert download(admin, model.model_id)[1] == data


@pytest.mark.chaos
def test_an_aggregation_waits_for_room(server: Server, admin: Person, filler: Filler) -> None:
    clients = [admin.make(server.address, "CLIENT") for _ in range(2)]
    first, second = (file_of(value) for value in (1, 3))
    head = training_pb2.CreateTrainingRequest(spec={"name": "t", "target_num_updates": 1})
    head.spec.client_ids.extend(client.user_id for client in clients)
    chunks = [training_pb2.CreateTrainingRequest(chunk=one.chunk) for one in update_chunks(file_of(0))]
    made = admin.trainings.CreateTraining(iter([head, *chunks]), timeout=TIMEOUT).training
    admin.start(made.training_id)
    clients[0].submit(made.training_id, first)
    # For the second update, and not for the result.
    filler.leave(len(second) + 2 * CHUNK)
    clients[1].submit(made.training_id, second)
    until(lambda: f"aggregation of training {made.training_id}: the server's disk is full" in server.log)
    assert admin.get(made.training_id).state == training_pb2.TRAINING_STATE_ONGOING
    filler.remove()
    until(lambda: admin.get(made.training_id).state != training_pb2.TRAINING_STATE_ONGOING)
    assert admin.get(made.training_id).state == training_pb2.TRAINING_STATE_COMPLETED
    assert np.all(load(download(admin, made.model_id)[1])["w"] == 2)
    for client in clients:
        client.channel.close()
