"""Measures trainings of adapters of a large model, whose versions are stored as a base and a delta.

The model has the shape of one of 14 GB: a sparse file, which is put where the server keeps an upload, so that the disk
need not have the room. Participants download the delta of each version, and send adapters of 40 MB. Their rounds are
compared with those of a training on the same server whose whole model is as large as the adapters.

Measured are the anonymous memory of the server and its workers, a round's time, how often the base is on the disk, and
what the versions of a long training take, which has one participant.
"""

import argparse
import asyncio
import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

import fedround_client as fr
from fedround_client.safetensors_header import TensorInfo, write_header
from fedround_server.blobs import BlockChecksums
from fedround_server.blobs.files import LocalFiles
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import BlobRef, Dtype, NewModel, TensorSpec
from fedround_server.store import Store
from measure import MIB, Running, Usage, fedround_server, keep

LAYERS = 32
ADAPTERS = "*.adapter"
READ = 8 << 20

Adapters = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def adapters(size: int, seed: int) -> Adapters:
    """Returns adapters of a size in bytes."""
    random = np.random.default_rng(seed)
    return {
        f"layer.{number}.adapter": random.standard_normal(size // 4 // LAYERS, np.float32) for number in range(LAYERS)
    }


def tensors(base_bytes: int, adapter_bytes: int) -> Iterator[TensorInfo]:
    """Describes the tensors of the large model."""
    for number in range(LAYERS):
        yield TensorInfo(f"layer.{number}.adapter", "F32", (adapter_bytes // 4 // LAYERS,))
        yield TensorInfo(f"layer.{number}.weight", "F32", (base_bytes // 4 // LAYERS,))


def put_model(folder: Path, owner_id: str, base_bytes: int, adapter_bytes: int) -> tuple[str, str]:
    """Puts the large model into a data directory whose server does not run; returns its id and its digest."""
    described = list(tensors(base_bytes, adapter_bytes))
    path = folder / "base.safetensors"
    header = write_header(described)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(info.num_bytes for info in described))
    digest, checksums = hashlib.sha256(), BlockChecksums()
    with path.open("rb") as file:
        while data := file.read(READ):
            digest.update(data)
            checksums.update(data)
    blob = BlobRef(digest.hexdigest(), path.stat().st_size, checksums.digest())
    target = LocalFiles(folder).blob_path(blob.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    manifest = {info.name: TensorSpec(Dtype[info.dtype], info.shape) for info in described}
    model_id, model = str(uuid4()), NewModel("large", "", manifest, blob)
    with Store(folder / "fedround.db") as store:
        asyncio.run(store.models.create(model_id, owner_id, model, Quotas(), datetime.now(UTC)))
    return model_id, blob.sha256


def train(
    server: Running, actor: fr.Client, clients: list[tuple[str, str]], updates: list[Adapters], **spec: Any
) -> tuple[str, list[float]]:
    """Runs a training; returns the id of its model, and the seconds between the starts of its rounds."""
    training = actor.create_training(**spec, client_ids=[user_id for user_id, _ in clients], evaluation="NEVER")
    starts: list[float] = []
    with ExitStack() as stack:
        connections = [stack.enter_context(fr.connect(server.address, token)) for _, token in clients]
        pool = stack.enter_context(ThreadPoolExecutor(len(clients)))

        def take_part(client: fr.Client, update: Adapters, number: int, is_delta: bool) -> None:
            if number:
                part = "DELTA" if is_delta else "MODEL"
                client.download_model(training.model_id, number, part=part)
            client.submit_update(training.training_id, number, update, 1)

        def end_if_failed(part: "Future[None]") -> None:
            if part.exception() is not None:
                actor.remove_training(training.training_id, force=True)

        events = actor.watch(training.training_id)
        actor.start_training(training.training_id)
        for event in events:
            if event.HasField("round_started"):
                starts.append(time.perf_counter())
                started = event.round_started
                is_delta = bool(started.model.delta_sha256)
                for client, update in zip(connections, updates, strict=True):
                    pool.submit(take_part, client, update, started.round, is_delta).add_done_callback(end_if_failed)
            elif event.HasField("training_finished"):
                break
            elif event.HasField("training_removed"):
                raise SystemExit("a participant failed")
        starts.append(time.perf_counter())
    return training.model_id, [after - before for before, after in pairwise(starts)]


def main() -> None:
    """Measures, and writes the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-bytes", type=int, default=14_000_000_000)
    parser.add_argument("--adapter-bytes", type=int, default=40_000_000)
    parser.add_argument("--participants", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=8, help="rounds that are timed")
    parser.add_argument("--versions", type=int, default=100, help="versions of the long training")
    parser.add_argument("--folder", type=Path, help="where data goes; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="write the figures into results.json")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="fedround-parts-") as name:
        figures = measure(Path(name) / "data", chosen)
    for key, value in figures.items():
        print(f"{key}: {value}")
    if chosen.keep:
        keep("parts", figures)


def measure(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Runs all trainings on one server."""
    with fedround_server(folder, "--log-level", "warning") as server, fr.connect(server.address, server.token) as admin:
        owner, actor_token = admin.create_user("actor", role="ACTOR")
        made = [admin.create_user(f"client {number}") for number in range(chosen.participants)]
    clients = [(user.user_id, token) for user, token in made]
    model_id, base = put_model(folder, owner.user_id, chosen.base_bytes, chosen.adapter_bytes)
    updates = [adapters(chosen.adapter_bytes, seed) for seed in range(chosen.participants)]
    spec = {"name": "benchmark", "target_num_updates": chosen.rounds}
    with (
        fedround_server(folder, "--log-level", "warning") as server,
        fr.connect(server.address, actor_token) as actor,
    ):
        _, plain = train(server, actor, clients, updates, model=updates[0], **spec)
        with Usage(server.pid) as usage:
            _, parts = train(server, actor, clients, updates, model_id=model_id, trainable=[ADAPTERS], **spec)
        long = spec | {"target_num_updates": chosen.versions}
        last_id, _ = train(server, actor, clients[:1], updates[:1], model_id=model_id, trainable=[ADAPTERS], **long)
        deltas = sum(one.delta_size_bytes for one in actor.model_versions(last_id) if one.version)
    bases = [
        path for path in (folder / "objects").rglob("*") if path.is_file() and path.stat().st_size >= chosen.base_bytes
    ]
    return {
        "base_gb": round(chosen.base_bytes / 1e9, 2),
        "adapter_mb": round(chosen.adapter_bytes / 1e6, 2),
        "participants": chosen.participants,
        "round_seconds": round(statistics.median(parts[1:]), 3),
        "round_seconds_of_a_model_of_the_adapters": round(statistics.median(plain[1:]), 3),
        "first_round_seconds": round(parts[0], 3),
        "server_anonymous_mib": round(usage.peak_anonymous / MIB),
        "bases_on_disk": len(bases),
        "is_the_uploaded_base": [path.name for path in bases] == [base],
        "versions": chosen.versions,
        "bytes_of_versions_per_adapters": round(deltas / chosen.versions / chosen.adapter_bytes, 4),
    }


if __name__ == "__main__":
    main()
