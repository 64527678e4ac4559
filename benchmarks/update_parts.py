"""Measures the parts of a small update, each alone, and what a whole one takes next to them, of 10 kB and of 1 MB.

Each part is done over and over in this process, the calls between this process and a server whose handlers drop
everything (null_server.py). The whole update is that of a server with its defaults: one client sends one after the
other, and then some send at once. There the statements and transactions of SQLite are counted (a server's Python loads
a module that traces them, see `COUNTER`), and the syncs (servers.py). What the whole takes beyond the sum of the parts
is Python, and waking threads.
"""

import argparse
import hashlib
import os
import signal
import sqlite3
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
import structlog
from safetensors.numpy import save

from callers import Caller
from disk import durable_writes, measure_disk, told
from fedround.v1 import round_pb2
from fedround.v1.round_pb2_grpc import RoundServiceStub
from fedround.v1.training_pb2 import GetTrainingRequest
from fedround_client.channel import open_channel
from fedround_client.chunk_stubs import with_chunk_codec
from fedround_client.payload import CHUNK
from fedround_server.engine.format.header import read_header
from fedround_server.logs import set_up
from measure import Running, cpu_seconds, fedround_server, keep, tree, wait_for
from peers.fedround import messages
from servers import SlowSyncs, Unavailable
from streams import null_server
from update_client import update_spec

SIZES = {"10 kB": 10_000, "1 MB": 1_000_000}
TENSORS = 10
SECONDS = 0.5
"""How long each part is repeated."""
COUNT = "STATEMENT_COUNT"
COUNTER = """
import mmap, os, sqlite3

with open(os.environ["STATEMENT_COUNT"], "r+b") as file:
    counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

def trace(sql):
    counts[0] += 1
    counts[1] += sql.startswith("COMMIT")

def connect(*arguments, **options):
    connection = real(*arguments, **options)
    connection.set_trace_callback(trace)
    return connection

real = sqlite3.connect
sqlite3.connect = sqlite3.dbapi2.connect = connect
"""

Figures = dict[str, Any]


def timed(work: Callable[[], object], seconds: float = SECONDS) -> Figures:
    """Returns the median time of some work, and the CPU time of this process for one."""
    work()
    taken: list[float] = []
    cpu, end = time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end or not taken:
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return {"ms": statistics.median(taken) * 1e3, "cpu_ms": (time.process_time() - cpu) / len(taken) * 1e3}


def model_of(size: int) -> bytes:
    """Returns a file of some tensors, of a size in bytes without its header."""
    rng = np.random.default_rng(0)
    return save({f"layer{number}": rng.standard_normal(size // 4 // TENSORS, np.float32) for number in range(TENSORS)})


def computation(data: bytes, log_file: Path) -> Figures:
    """Measures what needs no disk and no other process."""
    (header_size,) = struct.unpack_from("<Q", data)
    header, numbers = data[8 : 8 + header_size], np.frombuffer(data, "<f4", offset=8 + header_size)
    with log_file.open("w") as stream:
        set_up("console", "info", stream)
        log = structlog.get_logger("fedround.call")
        line = {"method": "/fedround.v1.RoundService/SubmitUpdate", "code": "OK", "seconds": 0.0123, "peer": "ipv4:1"}
        return {
            "SHA-256": timed(lambda: hashlib.sha256(data).hexdigest()),
            "CRC-32C": timed(lambda: google_crc32c.value(data)),
            "header, parsed anew": timed(lambda: read_header(header, 10_000)),
            "NaN and Inf": timed(lambda: bool(np.isfinite(numbers).all())),
            "a log line": timed(lambda: log.info("call", **line)),
        }


def storage(data: bytes, folder: Path) -> Figures:
    """Measures what forces the bytes to disk: as a file of its own, in a journal, and as a row of the database."""
    with durable_writes(folder, data) as (append, store):
        return {"file, fsync, rename, fsync of the folder": timed(store), "journal, fdatasync": timed(append)}


def transactions(folder: Path) -> Figures:
    """Measures a transaction of SQLite, forced to disk as the server's are, and each further statement in it."""
    with closing(sqlite3.connect(folder / "parts.db", isolation_level=None)) as database:
        for sql in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE part (id INTEGER PRIMARY KEY, name TEXT UNIQUE, value REAL)",
        ):
            database.execute(sql)
        number = 0

        def transaction(statements: int) -> None:
            nonlocal number
            database.execute("BEGIN IMMEDIATE")
            for _ in range(statements):
                number += 1
                database.execute("INSERT INTO part VALUES (?, ?, ?)", (number, f"name {number}", 0.5))
            database.execute("COMMIT")

        one, many = timed(lambda: transaction(1)), timed(lambda: transaction(101))
    more = {what: (many[what] - one[what]) / 100 for what in one}
    return {"a transaction with one statement": one, "a further statement": more}


class Client:
    """A client on the raw stubs, as it is in the rounds: a stream of messages with the chunk codec."""

    def __init__(self, address: str) -> None:
        channel = open_channel(address)
        rounds: Any = with_chunk_codec(RoundServiceStub(channel), channel, round_pb2.DESCRIPTOR)
        self._submit = rounds.SubmitUpdate

    def send(self, data: bytes, token: str, training_id: str, number: int) -> Any:
        """Begins to send an update; returns a future."""
        spec = update_spec(data, training_id, number)
        chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        metadata = (("authorization", f"Bearer {token}"),)
        return self._submit.future(messages(spec, chunks), metadata=metadata, timeout=60)


@dataclass
class Whole:
    """What many calls took: milliseconds of one, and of CPU, of the server, its worker and this client."""

    seconds: float
    server: float
    worker: float
    client: float
    calls: int

    def figures(self) -> Figures:
        """Returns the means."""
        per_call = 1e3 / self.calls
        return {
            "ms": self.seconds * per_call,
            "server_cpu_ms": self.server * per_call,
            "worker_cpu_ms": self.worker * per_call,
            "client_cpu_ms": self.client * per_call,
        }


def send_all(
    client: Client, pid: int, updates: Iterator[tuple[bytes, str]], training_id: str, number: int, at_once: int
) -> Whole:
    """Sends updates, so many at once."""
    workers = tree(pid)[1:]
    begin, client_cpu = time.perf_counter(), time.process_time()
    before, calls, open_calls = (cpu_seconds([pid]), cpu_seconds(workers)), 0, []
    for data, token in updates:
        open_calls.append(client.send(data, token, training_id, number))
        calls += 1
        if len(open_calls) >= at_once:
            open_calls.pop(0).result()
    for call in open_calls:
        call.result()
    return Whole(
        time.perf_counter() - begin,
        cpu_seconds([pid]) - before[0],
        cpu_seconds(workers) - before[1],
        time.process_time() - client_cpu,
        calls,
    )


def updates_of(model: bytes, tokens: Sequence[str], number: int) -> Iterator[tuple[bytes, str]]:
    """Yields an update of each user, another one than any before."""
    for index, token in enumerate(tokens):
        yield model[:-8] + struct.pack("<2f", number, index), token


def bare_call(size: int, calls: int) -> Figures:
    """Measures the call alone, one after the other."""
    with null_server() as (address, pid):
        client, model = Client(address), model_of(size)
        send_all(client, pid, updates_of(model, ["token"] * 10, 0), "", 0, 1)
        return send_all(client, pid, updates_of(model, ["token"] * calls, 1), "", 1, 1).figures()


def whole_updates(size: int, users: int, at_once: int, folder: Path) -> Figures:
    """Measures updates that a server accepts, and counts its statements and syncs."""
    (folder / "sitecustomize.py").write_text(COUNTER)
    counts = folder / "statements"
    counts.write_bytes(bytes(4096))
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    counted = {"PYTHONPATH": path, COUNT: str(counts)}
    found: Figures = {}
    with ExitStack() as stack:
        # One as it is, for the time, and one that counts.
        plain = stack.enter_context(fedround_server(folder / "plain"))
        found |= _both(plain, size, users, at_once)
        try:
            slow = SlowSyncs(folder, 0)
        except Unavailable as error:
            found["absent"] = str(error)
            return found
        counting = stack.enter_context(fedround_server(folder / "counting", environment=counted | slow.environment))

        def count() -> tuple[int, ...]:
            data = counts.read_bytes()
            return (*struct.unpack_from("<2Q", data), slow.count())

        counted_figures = _both(counting, size, users, at_once, count)
        for name, one in counted_figures.items():
            found[name]["counts"] = one["counts"]
    return found


def _both(
    server: Running, size: int, users: int, at_once: int, count: Callable[[], tuple[int, ...]] | None = None
) -> Figures:
    """Measures updates one after the other, and at once; the first round does not count."""
    model, found = model_of(size), {}
    with grpc.insecure_channel(server.address) as channel:
        admin = Caller(channel, server.token)
        made = [admin.make(f"user {number}") for number in range(users)]
        training_id = admin.train(made, 3, model=model).training_id
        client, tokens = Client(server.address), [user.token for user in made]
        request = GetTrainingRequest(training_id=training_id)
        for number, (name, limit) in enumerate((("", at_once), ("one", 1), ("many", at_once))):
            before = count() if count else ()
            one = send_all(client, server.pid, updates_of(model, tokens, number), training_id, number, limit).figures()
            if count:
                each = [(there - here) / users for here, there in zip(before, count(), strict=True)]
                one["counts"] = dict(zip(("statements", "commits", "syncs"), each, strict=True))
            found[name] = one

            def is_committed(version: int = number + 1) -> bool:
                return bool(admin.trainings.GetTraining(request).training.model_version >= version)

            wait_for(60, is_committed, 0.02)
    del found[""]
    return found


def rounded(figures: Any) -> Any:
    """Returns the same with numbers that can be read."""
    if isinstance(figures, dict):
        return {name: rounded(one) for name, one in figures.items()}
    return round(figures, 4) if isinstance(figures, float) else figures


def measure(options: argparse.Namespace) -> Figures:
    """Measures all parts for all sizes."""
    found: Figures = {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="parts-", dir=options.folder) as own:
            folder = Path(own)
            data = model_of(size)
            parts = {**storage(data, folder), **transactions(folder), **computation(data, folder / "log")}
            found[name] = {
                "parts": parts,
                "call": bare_call(size, options.calls),
                "whole": whole_updates(size, options.users, options.at_once, folder),
            }
    checked: Figures = rounded(found)
    return checked


def show(found: Figures) -> None:
    """Prints tables."""
    for name, one in found.items():
        print(f"\n{name}: part, measured alone{'':20}       ms    ms of CPU")
        for part, took in one["parts"].items():
            print(f"  {part:44} {took['ms']:9.3f} {took['cpu_ms']:9.3f}")
        whole = {f"whole, {what}": took for what, took in one["whole"].items() if what != "absent"}
        for part, took in {"the call": one["call"], **whole}.items():
            cpu = ", ".join(f"{who} {took[f'{who}_cpu_ms']:.2f}" for who in ("server", "worker", "client"))
            counts = ", ".join(f"{what} {value:.2f}" for what, value in took.get("counts", {}).items())
            print(f"  {part:44} {took['ms']:9.3f}   CPU: {cpu}   {counts}")


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="to the server that drops updates")
    parser.add_argument("--users", type=int, default=200, help="each of whom sends an update in each round")
    parser.add_argument("--at-once", type=int, default=32, help="updates that are sent at once")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where files are kept")
    options = parser.parse_args()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    disk = measure_disk(options.folder)
    found = measure(options)
    show(found)
    print(f"disk: {told(disk)}")
    keep("update_parts", {"at_once": options.at_once, "users": options.users, "disk": disk, "sizes": found})


if __name__ == "__main__":
    main()
