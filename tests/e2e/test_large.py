"""A round of a model that is larger than what the server may hold in memory, file by file as it comes."""

import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from calls import Person, kinds
from fedround.v1 import model_pb2, round_pb2, training_pb2
from servers import MODULE, Server, memory

CHUNK = 3 << 18
# Between the values of a file nothing is written: it is a hole on the disk, and is read as zeros.
STRIDE = 16 << 20
TIMEOUT = 900
# What the server's memory may grow by, whatever the size of the model.
GROWTH = 100 << 20


def sparse(path: Path, size: int, value: float) -> str:
    """Writes a file of one tensor with a value here and there; returns its SHA-256."""
    described = {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    header = json.dumps(described, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        start = file.tell()
        file.truncate(start + size)
        for position in [*range(0, size, STRIDE), size - 4]:
            file.seek(start + position)
            file.write(struct.pack("<f", value))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def messages(head: Any, path: Path) -> Iterator[Any]:
    yield head
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield type(head)(chunk=chunk)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Goes with the test: pytest would keep its gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.serial
@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(
    "size",
    [
        150 << 20,
        pytest.param(300 << 20, marks=pytest.mark.chaos),
        pytest.param(
            3 << 30,
            marks=[
                pytest.mark.chaos,
                pytest.mark.skipif(
                    "FEDROUND_TEST_3GB" not in os.environ, reason="3 GB take 15 GB of disk: set FEDROUND_TEST_3GB"
                ),
            ],
        ),
    ],
    ids=["150 MB", "300 MB", "3 GB"],
)
@pytest.mark.chaos
def test_a_round_of_a_large_model(folder: Path, size: int) -> None:
    paths = {value: folder / str(value) for value in (0.0, 1.0, 4.0, 3.25)}
    digests = {value: sparse(path, size, value) for value, path in paths.items()}
    with Server(folder / "data", program=MODULE) as server, grpc.insecure_channel(server.address) as channel:
        before = memory(server.pid, "VmHWM")
        actor = Person(channel, server.admin_token)
        clients = sorted((actor.make(server.address, "CLIENT") for _ in range(2)), key=lambda one: one.user_id)
        spec = training_pb2.TrainingSpec(
            name="large", target_num_updates=1, client_ids=[client.user_id for client in clients]
        )
        head = training_pb2.CreateTrainingRequest(spec=spec)
        made = actor.trainings.CreateTraining(messages(head, paths[0.0]), timeout=TIMEOUT).training
        actor.start(made.training_id)
        events = actor.rounds.Subscribe(round_pb2.SubscribeRequest(training_id=made.training_id), timeout=TIMEOUT)
        for client, value, num_examples in zip(clients, (1.0, 4.0), (1, 3), strict=True):
            update = round_pb2.UpdateSpec(
                training_id=made.training_id,
                num_examples=num_examples,
                sha256=digests[value],
                size_bytes=paths[value].stat().st_size,
            )
            head = round_pb2.SubmitUpdateRequest(spec=update)
            client.rounds.SubmitUpdate(messages(head, paths[value]), timeout=TIMEOUT)
            client.channel.close()
        assert kinds([event for event in events if not event.HasField("heartbeat")])[-1] == "training_finished"

        request = model_pb2.DownloadModelRequest(model_id=made.model_id)
        received = hashlib.sha256()
        for answer in actor.models.DownloadModel(request, timeout=TIMEOUT):
            received.update(answer.chunk)
        # (1 x 1.0 + 3 x 4.0) / 4
        assert received.hexdigest() == digests[3.25]
        grown = memory(server.pid, "VmHWM") - before
        sys.stdout.write(f"the server grew by {grown >> 20} MiB\n")
        assert grown < GROWTH
