"""Measures what a small update costs with one, two and four replicas on one PostgreSQL database, and how many come in.

The replicas are processes on this machine, which their clients, PostgreSQL and each other share: the rate says what
this machine can do, and the CPU time of an update says whether replicas cost more than they do. The numbers of replicas
take turns, each with new servers and a new database; clients are those of updates.py, each process on one replica.

    accepted a second     while a round is open; and of the whole time, with the commits of the rounds
    CPU an update         of the servers, their workers, PostgreSQL, and the clients, with the commits of the rounds
    commits, WAL          transactions of PostgreSQL an update, and bytes that it wrote to its log
    busy                  the part of all cores that all of these used: near 1, the processor is what bounds the rate
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import psycopg
from safetensors.numpy import save

from callers import Caller
from fedround.v1.training_pb2 import GetTrainingRequest
from measure import Running, fedround_server, keep, tree, wait_for
from servers import postgresql
from updates import PATIENCE, Figures, Senders, Variant

FLUSH_SECONDS = 1.5
COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
WAL = "SELECT wal_bytes FROM pg_stat_wal"


class Installation:
    """Some replicas on a new database, and a training of all users."""

    def __init__(self, stack: ExitStack, server: str, count: int, options: argparse.Namespace) -> None:
        """Starts them."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replicas-", dir=options.folder)))
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {folder.name.replace('-', '_')}")
        self.database = server.replace("/postgres?", f"/{folder.name.replace('-', '_')}?")
        objects = folder / "objects"
        objects.mkdir(mode=0o700)
        self.replicas: list[Running] = []
        for number in range(count):
            data_dir = folder / f"replica{number}"
            data_dir.mkdir(mode=0o700)
            (data_dir / "objects").symlink_to(objects)
            # Only the first one makes the admin.
            if number:
                (data_dir / "admin.token").write_text(self.replicas[0].token)
            running = fedround_server(data_dir, "--database", self.database, "--log-level", "warning")
            self.replicas.append(stack.enter_context(running))
        first = self.replicas[0]
        admin = Caller(stack.enter_context(grpc.insecure_channel(first.address)), first.token)
        model = save({"weight": np.zeros(options.kilobytes * 1000 // 4, np.float32)})
        users = [admin.make(f"user {number}") for number in range(options.users)]
        self.training_id = admin.train(users, options.rounds + 2, model=model).training_id
        self._admin = admin
        self.model = model
        self.tokens = [user.token for user in users]

    def next_round(self, number: int) -> str:
        """Waits until a round may begin; returns the training's id."""
        request = GetTrainingRequest(training_id=self.training_id)
        wait_for(PATIENCE, lambda: self._admin.trainings.GetTraining(request).training.model_version >= number, 0.02)
        return self.training_id

    def written(self) -> tuple[int, int]:
        """Returns how many transactions PostgreSQL has committed for it, and how many bytes its log has."""
        # Sessions tell their statistics when they have been idle for a second.
        time.sleep(FLUSH_SECONDS)
        with psycopg.connect(self.database, autocommit=True) as connection:
            ((commits,),) = connection.execute(COMMITS).fetchall()
            ((size,),) = connection.execute(WAL).fetchall()
        return int(commits), int(size)


def turn(server: str, database_pid: int, count: int, options: argparse.Namespace) -> Figures:
    """Measures some rounds with so many replicas."""
    with ExitStack() as stack:
        made = Installation(stack, server, count, options)

        def processes() -> dict[str, list[int]]:
            servers = [one.pid for one in made.replicas]
            workers = [pid for one in servers for pid in tree(one) if pid != one]
            return {"servers": servers, "workers": workers, "database": tree(database_pid)}

        variant = Variant(str(count), processes, made.next_round)
        senders = stack.enter_context(Senders(options.processes, options.in_flight))
        senders.connect(str(count), ",".join(one.address for one in made.replicas), made.tokens, made.model)
        # The first round does not count: connections are made, and caches fill.
        variant.turn(senders, 0, 1, options.users)
        before = made.written()
        variant.turn(senders, 1, options.rounds, options.users)
        after = made.written()
        figures = variant.taken[-1]
        updates = options.rounds * options.users
        seconds = updates / figures["updates_per_second_with_commits"]
        used = sum(figures["cpu_ms"].values()) * updates / 1e3
        figures["commits_per_update"] = round((after[0] - before[0]) / updates, 2)
        figures["wal_bytes_per_update"] = round((after[1] - before[1]) / updates)
        figures["busy"] = round(used / seconds / len(os.sched_getaffinity(0)), 2)
        return figures


def summary(turns: list[Figures]) -> Figures:
    """Returns the medians of all turns, and the CPU of each but that of the clients."""
    for one in turns:
        one["cpu_ms"]["all but clients"] = round(sum(one["cpu_ms"].values()) - one["cpu_ms"]["clients"], 3)
    found: Figures = {}
    for what, first in turns[0].items():
        if isinstance(first, dict):
            found[what] = {name: round(statistics.median(one[what][name] for one in turns), 3) for name in first}
        else:
            found[what] = round(statistics.median(one[what] for one in turns), 3)
    return found | {"each": [one["cpu_ms"]["all but clients"] for one in turns]}


def main() -> None:
    """Measures, prints a table, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--users", type=int, default=1000, help="each of whom sends an update a round")
    parser.add_argument("--rounds", type=int, default=2, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=4, help="that the clients live in; a multiple of the replicas")
    parser.add_argument("--in-flight", type=int, default=64, help="updates that are sent at once, of all clients")
    parser.add_argument("--kilobytes", type=int, default=10, help="size of an update, in 10^3 bytes")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where files are kept")
    options = parser.parse_args()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    turns: dict[int, list[Figures]] = {count: [] for count in options.replicas}
    with (
        tempfile.TemporaryDirectory(prefix="replicas-", dir=options.folder) as folder,
        postgresql(Path(folder) / "postgresql", {}) as (server, pid),
    ):
        for _ in range(options.turns):
            for count in options.replicas:
                turns[count].append(turn(server, pid, count, options))
                print(f"{count} replicas: {turns[count][-1]}", flush=True)
    found = {str(count): summary(some) for count, some in turns.items()}
    base = found[str(options.replicas[0])]["cpu_ms"]["all but clients"]
    print(f"\n{'replicas':10} accepted a second (with commits)  commits, WAL bytes  busy  CPU, ms an update (ratio)")
    for count, one in found.items():
        one["cpu_ratio"] = round(one["cpu_ms"]["all but clients"] / base, 3)
        cpu = ", ".join(f"{what} {value:.2f}" for what, value in one["cpu_ms"].items())
        print(
            f"{count:10} {one['updates_per_second']:17.0f} ({one['updates_per_second_with_commits']:.0f})"
            f" {one['commits_per_update']:16.2f}, {one['wal_bytes_per_update']:.0f} {one['busy']:12.2f}  {cpu}"
            f" ({one['cpu_ratio']:.2f})"
        )
    settings = ("users", "rounds", "turns", "processes", "in_flight", "kilobytes")
    keep("replicas", {**{name: getattr(options, name) for name in settings}, "replicas": found})


if __name__ == "__main__":
    main()
