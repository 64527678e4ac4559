"""Measures how many small updates a second the server accepts, and what one costs: on disk, checked, committed.

Many users take part in large rounds of a model of 10 kB, and send their updates as fast as they are answered, some at
once. They live in a few processes, which share the machine with the server, and are as lean as gRPC in Python allows:
one message and one answer a call, which is a unary call on the wire, the SHA-256 and CRC-32C of the file, and no SDK.
Every update is another one. In the rates, the time between a round's last receipt and the start of the next one is left
out, with the aggregation; in the second rate and in the seconds of CPU it is included.

The variants take turns: SQLite; PostgreSQL, embedded, on the same disk; both with syncs that take longer (servers.py);
each also of another checkout, if one is named; and the same calls to a server that drops them.

    accepted a second     while a round is open; and of the whole time, with the commits of the rounds
    CPU an update         of the server's process, its worker, PostgreSQL, and the clients, with the commits
    syncs an update       calls of fsync and fdatasync by the server, its worker and PostgreSQL, where syncs are slow
"""

import argparse
import multiprocessing
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save

from callers import Caller
from disk import measure_disk, told
from fedround.v1.training_pb2 import GetTrainingRequest
from measure import Running, cpu_seconds, fedround_server, keep, tree, wait_for
from servers import DEFAULT_SYNC_MS, SlowSyncs, Unavailable, checkout, postgresql
from streams import null_server
from update_client import Sender, Sent

VARIANTS = ("sqlite", "postgresql", "slow", "postgresql_slow", "calls")
BEFORE = "before_"
PATIENCE = 120.0

Figures = dict[str, Any]


class Senders:
    """The processes of the clients. Its `with` block has them."""

    def __init__(self, processes: int, in_flight: int) -> None:
        self._in_flight = in_flight
        self._context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = self._context.Pipe()
            self._pipes.append(ours)
            self._processes.append(self._context.Process(target=Sender.live, args=(theirs,), daemon=True))

    def __enter__(self) -> "Senders":
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def connect(self, name: str, address: str, tokens: Sequence[str], model: bytes) -> None:
        """Has them connect for users, of whom each process has a part, to a server or one of `a:50051,b:50051` each."""
        count, addresses = len(self._pipes), address.split(",")
        for index, pipe in enumerate(self._pipes):
            to = addresses[index % len(addresses)]
            pipe.send(("connect", name, to, tokens[index::count], model, -(-self._in_flight // count)))
        self._answers()

    def send(self, name: str, training_id: str, number: int) -> list[Sent]:
        """Has all users send their update of a round; returns what each process says of it."""
        for index, pipe in enumerate(self._pipes):
            pipe.send(("send", name, training_id, number, index))
        return self._answers()

    def _answers(self) -> list[Any]:
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(PATIENCE):
                raise SystemExit(f"the clients have not answered after {PATIENCE:g} s")
            answers.append(pipe.recv())
        return answers


@dataclass
class Variant:
    """A server that the clients send to, and what it took turn by turn.

    Attributes:
        processes: Its process ids by what they are called in the figures.
        next_round: Waits until the round of a number may begin; returns the training's id.
        syncs: Counts the syncs until now; None where nothing counts them.
    """

    name: str
    processes: Callable[[], dict[str, list[int]]]
    next_round: Callable[[int], str]
    syncs: Callable[[], int] | None = None
    taken: list[Figures] = field(default_factory=list)

    def turn(self, senders: Senders, first: int, rounds: int, users: int) -> None:
        """Has so many rounds sent, and notes what that took."""
        training_id = self.next_round(first)
        begin, syncs = time.monotonic(), self.syncs() if self.syncs else 0
        before = {what: cpu_seconds(pids) for what, pids in self.processes().items()}
        open_seconds, clients, slowest = 0.0, 0.0, []
        for number in range(first, first + rounds):
            sent = senders.send(self.name, training_id, number)
            open_seconds += max(one.end for one in sent) - min(one.begin for one in sent)
            clients += sum(one.cpu for one in sent)
            slowest += [delay for one in sent for delay in one.delays]
            training_id = self.next_round(number + 1)
        updates = rounds * users
        cpu = {what: cpu_seconds(pids) - before[what] for what, pids in self.processes().items()} | {"clients": clients}
        slowest.sort()
        self.taken.append(
            {
                "updates_per_second": round(updates / open_seconds, 1),
                "updates_per_second_with_commits": round(updates / (time.monotonic() - begin), 1),
                "cpu_ms": {what: round(seconds / updates * 1e3, 3) for what, seconds in cpu.items()},
                "answer_ms_p50": round(slowest[len(slowest) // 2] * 1e3, 1),
                "answer_ms_p99": round(slowest[int(0.99 * (len(slowest) - 1))] * 1e3, 1),
                **({"syncs_per_update": round((self.syncs() - syncs) / updates, 3)} if self.syncs else {}),
            }
        )

    def summary(self) -> Figures:
        """Returns the medians of all turns, and the rates of each."""
        middle: Figures = {}
        for what, first in self.taken[0].items():
            if isinstance(first, dict):
                middle[what] = {
                    name: round(statistics.median(one[what][name] for one in self.taken), 3) for name in first
                }
            else:
                middle[what] = round(statistics.median(one[what] for one in self.taken), 3)
        return middle | {"each": [one["updates_per_second"] for one in self.taken]}


def serving(stack: ExitStack, name: str, senders: Senders, options: argparse.Namespace) -> Variant:
    """Starts what a variant needs, and a training of all users.

    Raises:
        Unavailable: It cannot be had here; the text says why.
    """
    size = options.kilobytes * 1000 // 4
    model = save({"weight": np.zeros(size, np.float32)})
    if name == "calls":
        address, pid = stack.enter_context(null_server())
        senders.connect(name, address, [str(number) for number in range(options.users)], model)
        return Variant(name, lambda: {"server": [pid]}, lambda _: "")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="updates-", dir=options.folder)))
    kind = name.removeprefix(BEFORE)
    arguments: list[str] = []
    packages = checkout(options.before) if name.startswith(BEFORE) else {}
    slow = SlowSyncs(folder, options.sync_ms) if kind.endswith("slow") else None
    environment = packages | (slow.environment if slow else {})
    database: list[int] = []
    if kind.startswith("postgresql"):
        url, database_pid = stack.enter_context(postgresql(folder / "postgresql", slow.environment if slow else {}))
        arguments = ["--database", url]
        database = [database_pid]
    running: Running = stack.enter_context(fedround_server(folder / "data", *arguments, environment=environment))
    channel = stack.enter_context(grpc.insecure_channel(running.address))
    admin = Caller(channel, running.token)
    users = [admin.make(f"user {number}") for number in range(options.users)]
    training_id = admin.train(users, options.turns * options.rounds + 2, model=model).training_id
    request = GetTrainingRequest(training_id=training_id)

    def next_round(number: int) -> str:
        wait_for(PATIENCE, lambda: admin.trainings.GetTraining(request).training.model_version >= number, 0.02)
        return training_id

    def processes() -> dict[str, list[int]]:
        workers = [pid for pid in tree(running.pid) if pid != running.pid]
        own = {"server": [running.pid], "worker": workers}
        return own | {"database": [pid for one in database for pid in tree(one)]} if database else own

    senders.connect(name, running.address, [user.token for user in users], model)
    return Variant(name, processes, next_round, slow.count if slow else None)


def measure(options: argparse.Namespace) -> tuple[dict[str, Figures], dict[str, str]]:
    """Has all variants take turns; returns their figures, and why others are absent."""
    names = list(options.variants)
    if options.before:
        names = [one for name in names for one in ([name] if name == "calls" else [name, BEFORE + name])]
    variants: list[Variant] = []
    absent: dict[str, str] = {}
    with Senders(options.processes, options.in_flight) as senders, ExitStack() as stack:
        for name in names:
            try:
                variants.append(serving(stack, name, senders, options))
            except Unavailable as error:
                absent[name] = str(error)
                print(f"{name}: ABSENT: {error}", flush=True)
        for one in variants:
            # The first round does not count: connections are made, and caches fill.
            one.turn(senders, 0, 1, options.users)
            one.taken.clear()
        for turn in range(options.turns):
            for one in variants:
                one.turn(senders, 1 + turn * options.rounds, options.rounds, options.users)
                print(f"{one.name:22} {one.taken[-1]}", flush=True)
    return {one.name: one.summary() for one in variants}, absent


def show(found: dict[str, Figures]) -> None:
    """Prints the table."""
    print(f"\n{'':22} accepted a second (with commits)   ms to the receipt: p50, p99   syncs  CPU, ms an update")
    for name, one in found.items():
        cpu = ", ".join(f"{what} {value:.2f}" for what, value in one["cpu_ms"].items())
        print(
            f"{name:22} {one['updates_per_second']:17.0f} ({one['updates_per_second_with_commits']:.0f})"
            f" {one['answer_ms_p50']:22.1f}, {one['answer_ms_p99']:.1f} {one.get('syncs_per_update', ''):>15}  {cpu}"
        )


def main() -> None:
    """Measures, prints a table, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--users", type=int, default=1000, help="each of whom sends an update a round")
    parser.add_argument("--rounds", type=int, default=2, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="that the clients live in")
    parser.add_argument("--in-flight", type=int, default=64, help="updates that are sent at once, of all clients")
    parser.add_argument("--kilobytes", type=int, default=10, help="size of an update, in 10^3 bytes")
    parser.add_argument("--sync-ms", type=float, default=DEFAULT_SYNC_MS, help="how much longer a slow sync takes")
    parser.add_argument("--before", type=Path, help="another checkout of fedround, whose server takes turns, too")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where servers keep their files"
    )
    options = parser.parse_args()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    disk = measure_disk(options.folder)
    found, absent = measure(options)
    show(found)
    print(f"disk: {told(disk)}")
    settings = ("users", "rounds", "turns", "processes", "in_flight", "kilobytes", "sync_ms")
    keep(
        "updates",
        {**{name: getattr(options, name) for name in settings}, "disk": disk, "variants": found, "absent": absent},
    )


if __name__ == "__main__":
    main()
