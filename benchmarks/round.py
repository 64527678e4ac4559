"""Measures rounds: a real server, participants that send the model back as it came, and what the disk allows.

A round moves the model to every participant, and as many bytes back; the server checks, syncs and averages them. Next
to it stands the limit of this machine, measured in the same run: the same bytes (the updates and the new model)
written, synced and hashed, one file after the other, and nothing else.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
from safetensors.numpy import save

from fedround.v1.event_pb2 import ModelInfo
from fedround.v1.model_pb2 import DownloadModelRequest
from fedround.v1.model_pb2_grpc import ModelServiceStub
from fedround.v1.round_pb2 import SubmitUpdateRequest, SubscribeRequest, UpdateSpec
from fedround.v1.round_pb2_grpc import RoundServiceStub
from fedround.v1.training_pb2 import CreateTrainingRequest, StartTrainingRequest, TrainingSpec
from fedround.v1.training_pb2_grpc import TrainingServiceStub
from fedround.v1.user_pb2 import ROLE_CLIENT, CreateUserRequest
from fedround.v1.user_pb2_grpc import UserServiceStub

RESULTS = Path(__file__).parent / "results.json"
CHUNK = 768 * 1024
MIB = 1024 * 1024
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Result:
    """What one setting gave, in seconds."""

    clients: int
    size_mib: float
    rounds: int
    median: float
    fastest: float
    slowest: float
    limit: float


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def chunks(data: bytes) -> Iterator[bytes]:
    return (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Runs a server and answers its address."""
    command = [sys.executable, "-m", "fedround_server", "--listen", "127.0.0.1:0", "--data-dir", str(folder)]
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout
            ready = process.stdout.readline()
            if "is serving on" not in ready:
                raise SystemExit(f"the server did not start: {ready}{Path(log.name).read_text()}")
            yield ready.split()[-1]
        finally:
            process.terminate()
            process.wait(30)


def echo(address: str, token: str, training_id: str) -> None:
    """Takes part in a training: downloads each round's model, and submits it as the update."""
    metadata = bearer(token)
    with grpc.insecure_channel(address) as channel:
        rounds, models = RoundServiceStub(channel), ModelServiceStub(channel)
        for event in rounds.Subscribe(SubscribeRequest(training_id=training_id), metadata=metadata):
            if event.WhichOneof("payload") != "round_started":
                continue
            model: ModelInfo = event.round_started.model
            request = DownloadModelRequest(model_id=model.model_id, version=model.version)
            data = b"".join(message.chunk for message in models.DownloadModel(request, metadata=metadata))
            spec = UpdateSpec(
                training_id=training_id,
                round=event.round_started.round,
                num_examples=1,
                sha256=model.sha256,
                size_bytes=model.size_bytes,
            )
            messages = [SubmitUpdateRequest(spec=spec), *(SubmitUpdateRequest(chunk=part) for part in chunks(data))]
            rounds.SubmitUpdate(iter(messages), metadata=metadata)


def limit(data: bytes, files: int, folder: Path) -> float:
    """Seconds to write, sync and hash so many files of these bytes."""
    begin = time.perf_counter()
    for number in range(files):
        with (folder / f"limit{number}").open("wb") as file:
            hashlib.sha256(data)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    for number in range(files):
        (folder / f"limit{number}").unlink()
    return seconds


def measure(address: str, admin: Metadata, clients: int, size_mib: float, rounds: int, folder: Path) -> Result:
    """Runs one training; a round lasts from one round_started to the next, as the actor hears of them."""
    data = save({"weight": np.random.default_rng(0).normal(size=int(size_mib * MIB / 4)).astype(np.float32)})
    with grpc.insecure_channel(address) as channel:
        users, trainings = UserServiceStub(channel), TrainingServiceStub(channel)
        created = [
            users.CreateUser(
                CreateUserRequest(name=f"{size_mib:g} MiB, {clients} clients, {number}", role=ROLE_CLIENT),
                metadata=admin,
            )
            for number in range(clients)
        ]
        spec = TrainingSpec(
            name="benchmark", target_num_updates=rounds + 1, client_ids=[user.user.user_id for user in created]
        )
        messages = [CreateTrainingRequest(spec=spec), *(CreateTrainingRequest(chunk=part) for part in chunks(data))]
        training_id = trainings.CreateTraining(iter(messages), metadata=admin).training.training_id
        limits = [limit(data, clients + 1, folder) for _ in range(2)]
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=echo, args=(address, user.token, training_id)) for user in created]
        for process in processes:
            process.start()
        trainings.StartTraining(StartTrainingRequest(training_id=training_id), metadata=admin)
        # A participant that fails leaves the round waiting: the timeout ends it.
        events = RoundServiceStub(channel).Subscribe(
            SubscribeRequest(training_id=training_id), metadata=admin, timeout=600
        )
        marks = [
            time.perf_counter()
            for event in events
            if event.WhichOneof("payload") in {"round_started", "training_finished"}
        ]
        limits += [limit(data, clients + 1, folder) for _ in range(2)]
        for process in processes:
            process.join()
    # The first round waits for the participants to start.
    times = [after - before for before, after in pairwise(marks[1:])]
    return Result(
        clients, size_mib, len(times), statistics.median(times), min(times), max(times), statistics.median(limits)
    )


def main() -> None:
    """Measures every size, prints a table, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--size-mib", type=float, nargs="+", default=[0.1, 10, 50])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_dir = folder / "data"
        data_dir.mkdir()
        with server(data_dir) as address:
            admin = bearer((data_dir / "admin.token").read_text().strip())
            print("clients      model  rounds     median    fastest      limit  median/limit")
            for size_mib in options.size_mib:
                result = measure(address, admin, options.clients, size_mib, options.rounds, folder)
                results.append(result)
                times = "".join(f"{s * 1e3:8.1f} ms" for s in (result.median, result.fastest, result.limit))
                ratio = result.median / result.limit
                print(f"{result.clients:7}  {size_mib:5g} MiB  {result.rounds:6}{times}  {ratio:11.1f}x", flush=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "grpcio": grpc.__version__}
    RESULTS.write_text(json.dumps({"machine": machine, "results": [asdict(result) for result in results]}, indent=2))


if __name__ == "__main__":
    main()
