"""Measures what grows: memory, time and disk over 1,000 rounds, work per update in large rounds, calls into long logs.

Three parts on one data directory, all calls on the raw stubs:

- cohorts: about as many updates in rounds of 100, 300 and 1,000 participants; the CPU that the server and its worker
  use for an update, with the commit of the round. This warms the server up: caches fill, and the heap finds its size.
- rounds: three participants, each with a subscription, train a tiny model for 1,000 rounds. Memory is what the server
  and its worker hold for themselves; its slope is a least-squares line behind the first tenth, with its standard error.
  A round lasts from one `round_started` to the next, as the actor hears of them. Disk is the database, with what is in
  its log (WAL) only, and the files. A training before keeps the files of its two latest versions only.
- history: a training of 1,000 participants with 10,000 events, which the store's own verbs write while no server runs
  (rows without files), and the one of the first part with 1,000 rounds. Each call is timed on both and on a training
  that has just begun, in turn; the ratio of the medians is what the history costs.
"""

import argparse
import math
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from callers import Caller, kind, submit_all
from fedround.v1.training_pb2 import GetTrainingRequest, Training
from history import Figures, replay, time_calls, write_history
from measure import Running, anonymous, cpu_seconds, fedround_server, keep, tree, wait_for
from servers import postgresql

COHORTS = (100, 300, 1000)
ROUNDS_OF_HISTORY = 10
KIB = 1024


@dataclass(frozen=True)
class Sample:
    """What the server and its worker used when a round began: bytes of memory, seconds of CPU."""

    round: int
    server: int
    worker: int
    cpu: float


class Disk:
    """What a data directory takes."""

    def __init__(self, folder: Path, database: str) -> None:
        self._folder = folder
        self.database = database or folder / "fedround.db"
        self._url = database

    def used(self) -> np.ndarray:
        """Bytes of the database, number of files, bytes of them."""
        size = "pg_database_size(current_database())" if self._url else "page_count * page_size"
        pages = "" if self._url else " FROM pragma_page_count(), pragma_page_size()"
        files = [path.stat().st_size for path in (self._folder / "objects").glob("*/*")]
        return np.array([self.ask(f"SELECT {size}{pages}"), len(files), sum(files)])

    def needed_versions(self, model_id: str) -> int:
        """How many versions of a model keep their file; the others' are collected a day later."""
        return int(self.ask(f"SELECT COUNT(*) FROM model_version WHERE stored AND model_id = '{model_id}'"))

    def last_sequence(self, training_id: str) -> int:
        """Where the log of a training ends."""
        return int(self.ask(f"SELECT last_sequence FROM training WHERE training_id = '{training_id}'"))

    def ask(self, sql: str) -> Any:
        """Returns the single value that a query has."""
        if self._url:
            import psycopg

            with psycopg.connect(self._url) as connection:
                return connection.execute(sql).fetchone()[0]  # type: ignore[index,arg-type]  # one row of a fixed text
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(sql).fetchone()[0]


def line(xs: list[int], ys: list[float]) -> Figures:
    """Returns the slope of a least-squares line with its standard error."""
    x, y = np.array(xs, float), np.array(ys, float)
    slope, offset = np.polyfit(x, y, 1)
    left = y - slope * x - offset
    error = math.sqrt(left @ left / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    return {"slope": round(float(slope), 2), "standard_error": round(error, 2)}


def workers_of(server: Running) -> list[int]:
    return [pid for pid in tree(server.pid) if pid != server.pid]


def take_part(caller: Caller, training_id: str, rounds: int) -> None:
    """Submits an update in each round."""
    for event in caller.events(training_id):
        if kind(event) == "round_started":
            number = event.round_started.round
            if number == rounds:
                return
            caller.submit(training_id, number)


def run_rounds(
    server: Running, admin: Caller, users: list[Caller], rounds: int, **spec: Any
) -> tuple[Training, list[float], list[Sample]]:
    """Runs the rounds of a training, and leaves it open; returns when each began, and what was used at some of them."""
    training = admin.train(users, rounds + 1, **spec)
    events = admin.events(training.training_id)
    threads = [
        threading.Thread(target=take_part, args=(user, training.training_id, rounds), daemon=True) for user in users
    ]
    for thread in threads:
        thread.start()
    marks: list[float] = []
    samples: list[Sample] = []
    workers = workers_of(server)
    every = max(1, rounds // 200)
    for event in events:
        if kind(event) != "round_started":
            continue
        marks.append(time.perf_counter())
        number = event.round_started.round
        if number % every == 0:
            cpu = cpu_seconds([server.pid, *workers])
            samples.append(Sample(number, anonymous([server.pid]), anonymous(workers), cpu))
        if number == rounds:
            break
    events.cancel()
    for thread in threads:
        thread.join()
    return training, marks, samples


def measure_rounds(
    server: Running, admin: Caller, users: list[Caller], disk: Disk, rounds: int
) -> tuple[Figures, Training]:
    """Returns the figures of many rounds, and their training."""
    before = disk.used()
    training, marks, samples = run_rounds(server, admin, users, rounds)
    database, files, file_bytes = (disk.used() - before) / rounds
    warm = [sample for sample in samples if sample.round >= rounds // 10]
    xs = [sample.round for sample in warm]
    times = [(there - here) * 1e3 for here, there in pairwise(marks)]
    window = min(100, rounds // 3)
    early, late = (statistics.median(some) for some in (times[10 : 10 + window], times[-window:]))
    tenth = max(1, len(warm) // 10)
    cpu = [_cpu_ms(warm[start], warm[end]) for start, end in ((0, tenth), (-1 - tenth, -1))]
    figures = {
        "rounds": rounds,
        "participants": len(users),
        "server_bytes_per_round": line(xs, [sample.server for sample in warm]),
        "worker_bytes_per_round": line(xs, [sample.worker for sample in warm]),
        "server_mib_first_last": [round(warm[at].server / KIB**2, 1) for at in (0, -1)],
        "worker_mib_first_last": [round(warm[at].worker / KIB**2, 1) for at in (0, -1)],
        "median_ms_early": round(early, 1),
        "median_ms_late": round(late, 1),
        "late_to_early": round(late / early, 3),
        "us_per_round": line(list(range(10, len(times))), [ms * 1e3 for ms in times[10:]]),
        "cpu_ms_early": round(cpu[0], 1),
        "cpu_ms_late": round(cpu[1], 1),
        "database_bytes_per_round": round(database),
        "files_per_round": round(files, 2),
        "file_bytes_per_round": round(file_bytes),
    }
    print(f"rounds: {rounds} of {len(users)} participants, {early:.1f} ms each at first, {late:.1f} ms in the end")
    print(f"  trend {_shown(figures['us_per_round'])} us a round, CPU {cpu[0]:.1f} and {cpu[1]:.1f} ms a round")
    for name in ("server", "worker"):
        slope, mib = _shown(figures[f"{name}_bytes_per_round"]), figures[f"{name}_mib_first_last"]
        print(f"  memory of the {name}: {slope} bytes a round, from {mib[0]} to {mib[1]} MiB")
    print(f"  disk: database {database:.0f} bytes a round; {files:.2f} files of {file_bytes:.0f} bytes", flush=True)
    return figures, training


def measure_retention(server: Running, admin: Caller, users: list[Caller], disk: Disk, rounds: int) -> Figures:
    """Returns what rounds leave of a training that keeps its two latest versions."""
    before = disk.used()
    training, _, _ = run_rounds(server, admin, users, rounds, keep_versions=2)
    database, *_ = (disk.used() - before) / rounds
    needed = disk.needed_versions(training.model_id)
    print(
        f"  with keep_versions 2: database {database:.0f} bytes a round, {needed} versions keep their file", flush=True
    )
    return {"rounds": rounds, "database_bytes_per_round": round(database), "versions_with_files": needed}


def measure_cohorts(server: Running, admin: Caller, users: list[Caller], updates: int) -> list[Figures]:
    """Returns what an update takes in rounds of many participants."""
    found = []
    print("participants  updates  server CPU  worker CPU   elapsed  (ms an update)")
    for size in COHORTS:
        rounds = max(1, updates // size)
        training_id = admin.train(users[:size], rounds).training_id
        request = GetTrainingRequest(training_id=training_id)
        begin, before = time.perf_counter(), [cpu_seconds(pids) for pids in ([server.pid], workers_of(server))]
        for number in range(rounds):
            submit_all(users[:size], training_id, number)

            def is_committed(version: int = number + 1) -> bool:
                return bool(admin.trainings.GetTraining(request).training.model_version >= version)  # noqa: B023  # now

            wait_for(60, is_committed, 0.02)
        after, seconds = [cpu_seconds(pids) for pids in ([server.pid], workers_of(server))], time.perf_counter() - begin
        cpu = [(there - here) / (rounds * size) * 1e3 for here, there in zip(before, after, strict=True)]
        elapsed = seconds / (rounds * size) * 1e3
        print(f"{size:12}  {rounds * size:7}  {cpu[0]:10.2f}  {cpu[1]:10.2f}  {elapsed:8.2f}", flush=True)
        found.append(
            {
                "participants": size,
                "updates": rounds * size,
                "server_cpu_ms": round(cpu[0], 2),
                "worker_cpu_ms": round(cpu[1], 2),
                "elapsed_ms": round(elapsed, 2),
            }
        )
    return found


def measure_history(
    admin: Caller, users: list[Caller], trainings: dict[str, Training], disk: Disk, calls: int
) -> Figures:
    """Returns what calls into long trainings take, next to one that has just begun."""
    trainings["fresh"] = admin.train(users[:3], 2)
    ends = {name: disk.last_sequence(training.training_id) for name, training in trainings.items()}
    clients = {"wide": users[3], "long": users[0], "fresh": users[0]}
    timed = time_calls(admin, clients, trainings, ends, calls)
    print(f"{'call':32}" + "".join(f"{name + ': ms':>13}  p99  ratio" for name in trainings))
    for method, by_training in timed.items():
        row = (f"{one['median_ms']:13.1f}{one['p99_ms']:5.0f}{one['ratio']:7.2f}" for one in by_training.values())
        print(f"{method:32}" + "".join(row))
    wide = trainings["wide"].training_id
    replays = {}
    for name, caller in (("actor", admin), ("participant", clients["wide"])):
        replays[name] = replay(caller, wide, ends["wide"])
        print(f"whole log, {name}: {replays[name]['events']} events, {replays[name]['events_per_second']} a second")
    return {"events": ends, "calls": calls, "timed": timed, "replays": replays}


def _cpu_ms(here: Sample, there: Sample) -> float:
    return (there.cpu - here.cpu) / (there.round - here.round) * 1e3


def _shown(slope: Figures) -> str:
    return f"{slope['slope']:.1f} +- {slope['standard_error']:.1f}"


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--participants", type=int, default=3)
    parser.add_argument("--kept-rounds", type=int, default=100, help="of the training that keeps two versions")
    parser.add_argument("--updates", type=int, default=1000, help="in rounds of each size")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument(
        "--database",
        default="",
        help="postgresql:// URL of an empty database, or `postgresql` for an embedded one; SQLite by default",
    )
    parser.add_argument("--only-cohorts", action="store_true", help="measure the first part alone")
    options = parser.parse_args()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name) / "data"
        folder.mkdir()
        url = options.database
        if url == "postgresql":
            url, _ = stack.enter_context(postgresql(Path(name) / "postgresql", {}))
        arguments = ("--database", url, "--log-level", "warning")
        disk = Disk(folder, url)
        with fedround_server(folder, *arguments) as server, grpc.insecure_channel(server.address) as channel:
            admin = Caller(channel, server.token)
            users = [admin.make(f"user {number}") for number in range(max(COHORTS))]
            few = users[: options.participants]
            cohorts = measure_cohorts(server, admin, users, options.updates)
            database = "PostgreSQL" if url else "SQLite"
            if options.only_cohorts:
                keep(
                    "growth_cohorts_postgresql" if url else "growth_cohorts", {"database": database, "cohorts": cohorts}
                )
                return
            retention = measure_retention(server, admin, few, disk, options.kept_rounds)
            rounds, long = measure_rounds(server, admin, few, disk, options.rounds)
            wide = admin.train(users, 100)
        write_history(disk.database, wide.training_id, [user.user_id for user in users], ROUNDS_OF_HISTORY)
        with fedround_server(folder, *arguments) as server, grpc.insecure_channel(server.address) as channel:
            again = [user.on(channel) for user in users]
            trainings = {"wide": wide, "long": long}
            history = measure_history(admin.on(channel), again, trainings, disk, options.calls)
    parts = {"rounds": rounds, "retention": retention, "cohorts": cohorts, "history": history}
    keep("growth_postgresql" if url else "growth", {"database": database, **parts})


if __name__ == "__main__":
    main()
