"""Measures a fleet: one round with many updates through relays, and a server with many registered users.

The round: virtual clients, which train nothing, send an update each to a relay; a few processes have many of them each,
over one connection to each relay. Each relay is a server and a `fedround relay`, which sends the sum to the parent. The
next version must have the digest of the mean of all updates, which is computed here with integers. Clients are written
into the tables of the relays before these start, and know when to send: they hold no subscriptions.

    updates a second    from the first one sent to the parent's next version
    CPU an update       of the relays' servers, of the parent, and of the relay programs
    peak MiB            most resident memory of a server and of a worker: of any relay, and of the parent

The users: as many are written into the tables of one server, and as few into those of another one. The two take turns.

    CPU a call          of the server: GetMyself, a page of a thousand of GetUsers, and CheckIn of a user who takes part
    MiB                 resident memory of the server, after its start and after the calls
"""

import argparse
import hashlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
from safetensors.numpy import save

import fedround_client as fr
from callers import Caller
from fedround.v1.round_pb2 import CheckInRequest, SubmitUpdateRequest
from fedround.v1.user_pb2 import GetMyselfRequest, GetUsersRequest
from measure import MIB, Running, cpu_seconds, fedround_server, keep, resident, tree, wait_for
from subscribers import make_users
from update_client import Sender, Sent, update_spec

PATIENCE = 3600.0
IN_FLIGHT = 64
"""Updates that a process has under way at once."""
GRID = 40
"""All numbers of updates are multiples of 2^-GRID."""
Array = np.ndarray[Any, np.dtype[Any]]
Figures = dict[str, Any]


def numbers(client: int, size: int) -> Array:
    """Returns what a client sends: float32, at least a quarter and less than one."""
    return (np.random.default_rng(client).random(size, np.float32) * np.float32(0.75) + np.float32(0.25)).astype("<f4")


def examples(client: int) -> int:
    """Returns how many examples a client has."""
    return 1 + client % 9


def mean_file(clients: int, size: int) -> bytes:
    """Returns the file of the exact mean of all updates, rounded once."""
    total, weight = np.zeros(size, np.int64), sum(map(examples, range(clients)))
    for client in range(clients):
        # Exact: multiples of 2^-GRID, which int64 holds for up to 2^20 clients.
        total += (numbers(client, size).astype(np.float64) * 2.0**GRID).astype(np.int64) * examples(client)
    return save({"weight": np.array([nearest(Fraction(int(one), weight << GRID)) for one in total], np.float32)})


def nearest(exact: Fraction) -> np.float32:
    """Returns the float32 number that is nearest to a positive one, of two the even one."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(2))]
    return min(around, key=lambda one: (abs(Fraction(float(one)) - exact), int(one.view(np.int32)) & 1))


class Clients(Sender):
    """The virtual clients of one relay in one process."""

    def __init__(self, address: str, tokens: Sequence[str], first: int, size: int) -> None:
        super().__init__(address, tokens, b"", IN_FLIGHT)
        self._first = first
        self._size = size

    def _request(self, training_id: str, number: int, process: int, index: int) -> SubmitUpdateRequest:
        client = self._first + index
        data = save({"weight": numbers(client, self._size)})
        spec = update_spec(data, training_id, number)
        spec.num_examples = examples(client)
        return SubmitUpdateRequest(spec=spec, chunk=data, chunk_crc32c=google_crc32c.value(data))


def send(address: str, tokens: Sequence[str], first: int, size: int, training_id: str) -> Sent:
    """Sends the updates of some clients to a relay's round."""
    return Clients(address, tokens, first, size).send(training_id, 0, 0)


@contextmanager
def relay_program(own: Running, actor_token: str, parent: Running, token: str, log: Path) -> Iterator[int]:
    """Runs `fedround relay` for the time of the block; yields its process."""
    tokens = {"FEDROUND_TOKEN": actor_token, "FEDROUND_PARENT_TOKEN": token}
    command = [sys.executable, "-m", "fedround_client", "--server", own.address, "relay", "--parent", parent.address]
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, env={**os.environ, **tokens}) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def begun(actor: fr.Client) -> str | None:
    """Returns the id of the training that a relay has started."""
    found = next(iter(actor.trainings("ACTOR")), None)
    return found.training_id if found is not None and found.HasField("start_time") else None


def round_of(options: argparse.Namespace) -> Figures:
    """Runs the round."""
    share = -(-options.clients // options.relays)
    bounds = [(start, min(start + share, options.clients)) for start in range(0, options.clients, share)]
    model = {"weight": np.zeros(options.numbers, np.float32)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-", dir=options.folder)))
        tokens = [list(make_users(folder / f"relay {first}", last - first).values()) for first, last in bounds]
        parent = stack.enter_context(fedround_server(folder / "parent"))
        admin = stack.enter_context(fr.connect(parent.address, parent.token))
        relays = [stack.enter_context(fedround_server(folder / f"relay {first}")) for first, _ in bounds]
        members, actors, programs = [], [], []
        for number, relay in enumerate(relays):
            user, token = admin.create_user(f"relay {number}")
            members.append(user.user_id)
            with fr.connect(relay.address, relay.token) as own:
                _, actor_token = own.create_user("relay", role="ACTOR")
            actors.append(stack.enter_context(fr.connect(relay.address, actor_token)))
            log = folder / f"relay {number}.program.log"
            programs.append(stack.enter_context(relay_program(relay, actor_token, parent, token, log)))
        training = admin.create_training(
            model, name="fleet", target_num_updates=1, client_ids=members, allow_relays=True
        )
        kinds = {
            "relays": lambda: [pid for one in relays for pid in tree(one.pid)],
            "parent": lambda: tree(parent.pid),
            "programs": lambda: list(programs),
        }
        pool = stack.enter_context(
            ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn"))
        )
        admin.start_training(training.training_id)
        wait_for(PATIENCE, lambda: all(map(begun, actors)), 0.1)
        before = {kind: cpu_seconds(pids()) for kind, pids in kinds.items()}
        begin = time.monotonic()
        sent = [
            pool.submit(send, relay.address, some, first, options.numbers, str(begun(actor)))
            for relay, some, (first, _), actor in zip(relays, tokens, bounds, actors, strict=True)
        ]
        clients = [one.result() for one in sent]
        ended = admin.wait(training.training_id, PATIENCE)
        seconds = time.monotonic() - begin
        cpu = {kind: cpu_seconds(pids()) - before[kind] for kind, pids in kinds.items()}
        peaks = {
            "relay server": max(peak(one.pid) for one in relays),
            "relay worker": max(peak(pid) for one in relays for pid in tree(one.pid)[1:]),
            "parent server": peak(parent.pid),
            "parent worker": max(map(peak, tree(parent.pid)[1:])),
        }
        found = next(iter(admin.model_versions(ended.model_id))).sha256
    if found != hashlib.sha256(mean_file(options.clients, options.numbers)).hexdigest():
        raise SystemExit("the version is not the mean of all updates")
    delays = sorted(delay for one in clients for delay in one.delays)
    return {
        "clients": options.clients,
        "relays": len(relays),
        "numbers": options.numbers,
        "digest_is_that_of_the_flat_mean": True,
        "updates_per_second": round(options.clients / seconds, 1),
        "seconds": round(seconds, 1),
        "answer_ms_p50": round(delays[len(delays) // 2] * 1e3, 1),
        "cpu_ms_an_update": {kind: round(one / options.clients * 1e3, 3) for kind, one in cpu.items()},
        "cpu_ms_an_update_of_clients": round(sum(one.cpu for one in clients) / options.clients * 1e3, 3),
        "peak_mib": {kind: round(one / MIB, 1) for kind, one in peaks.items()},
    }


def peak(pid: int) -> int:
    """Returns the most resident memory that a process ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


class Registered:
    """A server with so many users, and a training of some of them."""

    def __init__(self, stack: ExitStack, folder: Path, count: int, members: int) -> None:
        made = make_users(folder, count)
        self.running = stack.enter_context(fedround_server(folder))
        self.first_mib = self.mib()
        self.count = count
        self._channel = stack.enter_context(grpc.insecure_channel(self.running.address))
        self.admin = Caller(self._channel, self.running.token)
        self.members = [Caller(self._channel, token, id_) for id_, token in list(made.items())[:members]]
        self.admin.train(self.members, 10)
        self._page_token = ""

    def mib(self) -> float:
        """Returns the resident memory of the server's own process."""
        return round(resident([self.running.pid]) / MIB, 1)

    def get_myself(self, number: int) -> None:
        """Has a user ask who it is."""
        self.members[number % len(self.members)].users.GetMyself(GetMyselfRequest())

    def get_users(self, _: int) -> None:
        """Asks for the next page of all users."""
        request = GetUsersRequest(page_size=1000, page_token=self._page_token)
        self._page_token = self.admin.users.GetUsers(request).next_page_token

    def check_in(self, number: int) -> None:
        """Has a participant ask what is new."""
        self.members[number % len(self.members)].rounds.CheckIn(CheckInRequest())

    def cpu_ms(self, call: Callable[[int], None], calls: int) -> float:
        """Returns the milliseconds of CPU that a call costs the server."""
        before = cpu_seconds([self.running.pid])
        for number in range(calls):
            call(number)
        return (cpu_seconds([self.running.pid]) - before) / calls * 1e3


def users_of(options: argparse.Namespace) -> Figures:
    """Measures the calls at a server with many users, and at one with few."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-", dir=options.folder)))
        # With the admin, they fill one page.
        few = min(999, options.registered)
        both = {
            "many": Registered(stack, folder / "many", options.registered, few),
            "few": Registered(stack, folder / "few", few, few),
        }
        taken: dict[str, dict[str, list[float]]] = {name: {} for name in both}
        for _ in range(options.turns + 1):
            for name, one in both.items():
                for call, calls in (("get_myself", 1000), ("get_users", 30), ("check_in", 1000)):
                    calls = max(1, calls * options.calls // 1000)
                    taken[name].setdefault(call, []).append(one.cpu_ms(getattr(one, call), calls))
        # The first turn fills caches.
        medians = {
            name: {call: round(statistics.median(each[1:]), 3) for call, each in found.items()}
            for name, found in taken.items()
        }
        return {
            name: {
                "users": one.count,
                "cpu_ms": medians[name],
                "mib_at_start": one.first_mib,
                "mib_after_calls": one.mib(),
            }
            for name, one in both.items()
        }


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {"round": round_of, "users": users_of}


def main() -> None:
    """Measures both, prints the figures, and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--clients", type=int, default=200, help="who send an update each; full size: 100000")
    parser.add_argument("--relays", type=int, default=2, help="full size: 10")
    parser.add_argument("--numbers", type=int, default=256, help="of a model")
    parser.add_argument("--registered", type=int, default=2000, help="users of one server; full size: 1000000")
    parser.add_argument("--calls", type=int, default=1000, help="of each kind in a turn; of pages a thirtieth")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="that the clients live in")
    parser.add_argument("--full", action="store_true", help="full sizes: about an hour on two cores")
    parser.add_argument("--discard", action="store_true", help="do not write the figures into results.json")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where servers keep their files"
    )
    options = parser.parse_args()
    if options.full:
        options.clients, options.relays, options.registered = 100_000, 10, 1_000_000
    for part in options.parts:
        figures = PARTS[part](options)
        print(part, figures, flush=True)
        if not options.discard:
            keep(f"fleet_{part}", figures)


if __name__ == "__main__":
    main()
