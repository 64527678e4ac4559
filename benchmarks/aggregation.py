"""Measures the aggregation engine: ratios to what peers do, to plain reading and to torch's own functions.

All files are read from the page cache, and each contender has its turn in each repeat; figures are medians. The times
of fedround include everything: verification of all files, correct rounding, the digest, the checksums and the fsync of
the result. The others read their files and compute, with one thread, and write nothing. byzfl runs in a process of its
own, after fedround and not in turn with it.

The last part measures a real server: from the answer to the last update until the next version is committed.
"""

import argparse
import functools
import hashlib
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedround_client as fr
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.krum import Krum
from fedround_server.aggregators.median import Median
from fedround_server.aggregators.server_optimizer import Adam, Sgd, Yogi
from fedround_server.aggregators.trimmed_mean import TrimmedMean
from fedround_server.blobs import BlockChecksums
from fedround_server.blobs.files import LocalFiles
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.model import BlobRef, Dtype, TensorSpec
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format.manifest import make_header
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.format.verification import Verifier, reading_ahead
from fedround_server.engine.jobs import AggregationJob
from fedround_server.host.allocator import keep_freed_blocks
from install_peers import PEERS
from measure import MIB, Usage, fedround_server, keep

GROUPS = ("means", "columns", "krum", "memory", "commit")
WEIGHTS = (3, 5, 7, 11, 13, 17, 19, 23)
DISTINCT = 8
"""Files that differ; of more updates, some are the same."""


@dataclass(frozen=True)
class Data:
    """Files of a model and of updates, and where their numbers begin."""

    folder: Path
    model: BlobRef
    updates: tuple[BlobRef, ...]
    offset: int

    @classmethod
    def make(cls, folder: Path, size: int) -> "Data":
        """Writes a model of so many bytes of float32, and updates of it."""
        files, random = LocalFiles(folder), np.random.default_rng(7)
        header = make_header({"weight": TensorSpec(Dtype.F32, (size // 4,))})
        model = random.standard_normal(size // 4, np.float32)
        blobs = []
        for number in range(DISTINCT + 1):
            noise = np.float32(0.01 * bool(number))
            data = header + (model + noise * random.standard_normal(size // 4, np.float32)).tobytes()
            checksums = BlockChecksums()
            checksums.update(data)
            blobs.append(BlobRef(hashlib.sha256(data).hexdigest(), len(data), checksums.digest()))
            path = files.blob_path(blobs[-1].sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return cls(folder, blobs[0], tuple(blobs[1:]), len(header))

    def paths(self, count: int) -> list[Path]:
        """Returns the paths of so many updates."""
        return [LocalFiles(self.folder).blob_path(self.updates[number % DISTINCT].sha256) for number in range(count)]

    def aggregate(self, aggregation: Aggregation, weights: Sequence[int], threads: int = 1) -> None:
        """Aggregates as a worker does, and removes the result."""
        updates = tuple(self.updates[number % DISTINCT] for number in range(len(weights)))
        users = tuple(map(str, range(len(weights))))
        job = AggregationJob(self.model, updates, tuple(weights), aggregation, user_ids=users)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            slots = {slot: Path(name) / slot.replace("/", "-") for slot in aggregation.slots}
            aggregate(LocalFiles(self.folder), job, Path(name) / "made", slots, threads)

    def read(self, count: int) -> None:
        """Reads so many updates once, as torch does it."""
        for path in self.paths(count):
            torch.from_numpy(np.memmap(path, np.float32, mode="r", offset=self.offset)).sum()

    def verify(self, count: int) -> None:
        """Verifies so many updates."""
        with reading_ahead() as ahead:
            for path, blob in zip(self.paths(count), self.updates, strict=False):
                with Verifier(path, blob, ahead) as verifier:
                    verifier.verify(0, blob.size_bytes)

    def write(self) -> None:
        """Writes as much as a result, and forces it to disk."""
        data = bytes(self.model.size_bytes)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def reduce(self, weights: Sequence[int]) -> None:
        """Averages with NumPy as peers do: arrays times weights, added in pairs, divided."""
        arrays = [np.fromfile(path, np.float32, offset=self.offset) for path in self.paths(len(weights))]
        weighted = [array * weight for array, weight in zip(arrays, weights, strict=True)]
        functools.reduce(np.add, weighted) / sum(weights)

    def stacked(self, count: int) -> torch.Tensor:
        """Returns the updates in one tensor: shape (count, elements)."""
        arrays = [np.fromfile(path, np.float32, offset=self.offset) for path in self.paths(count)]
        return torch.stack([torch.from_numpy(array) for array in arrays])


def in_turn(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Returns the median seconds of each, by the clock and of CPU, after one turn that does not count."""
    clocks: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            clock, cpu = time.perf_counter(), time.process_time()
            run()
            if repeat:
                clocks[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return {
        name: {
            "seconds": round(statistics.median(one for one, _ in found), 4),
            "cpu": round(statistics.median(one for _, one in found), 4),
        }
        for name, found in clocks.items()
    }


def measure_means(data: Data, repeats: int) -> dict[str, Any]:
    """Measures FedAvg and optimizers, and what they consist of."""
    plain, count = Aggregation(FedAvg()), len(WEIGHTS)
    equal = (1,) * count
    return in_turn(
        {
            "fed_avg": lambda: data.aggregate(plain, WEIGHTS),
            "numpy": lambda: data.reduce(WEIGHTS),
            "reading": lambda: data.read(count),
            "fed_avg, 2 threads": lambda: data.aggregate(plain, WEIGHTS, 2),
            "fed_avg, equal weights": lambda: data.aggregate(plain, equal),
            "sgd": lambda: data.aggregate(Aggregation(FedAvg(), server_optimizer=Sgd(momentum=0.9)), WEIGHTS),
            "adam": lambda: data.aggregate(Aggregation(FedAvg(), server_optimizer=Adam()), WEIGHTS),
            "yogi": lambda: data.aggregate(Aggregation(FedAvg(), server_optimizer=Yogi()), WEIGHTS),
            "part: verification": lambda: data.verify(count),
            "part: digest": lambda: hashlib.sha256(bytes(data.model.size_bytes)),
            "part: write and fsync": data.write,
        },
        repeats,
    )


def measure_columns(data: Data, repeats: int) -> dict[str, Any]:
    """Measures the median and the trimmed mean."""
    equal = (1,) * DISTINCT
    return in_turn(
        {
            "median": lambda: data.aggregate(Aggregation(Median()), equal),
            "torch.median": lambda: data.stacked(DISTINCT).median(dim=0),
            "trimmed_mean": lambda: data.aggregate(Aggregation(TrimmedMean(0.2)), equal),
            "torch.sort": lambda: data.stacked(DISTINCT).sort(dim=0)[0][1:-1].mean(dim=0),
        },
        repeats,
    )


def measure_krum(data: Data, count: int, repeats: int) -> dict[str, Any]:
    """Measures Krum, counts what it reads, and measures byzfl's beside it."""
    f = (count - 3) // 4
    found: dict[str, Any] = in_turn({"krum": lambda: data.aggregate(Aggregation(Krum(f)), (1,) * count)}, repeats)
    found["reads"] = round(count_reads(lambda: data.aggregate(Aggregation(Krum(f)), (1,) * count), data, count), 3)
    python = PEERS / "byzfl" / "bin" / "python"
    if not python.exists():
        print("byzfl: SKIPPED, it is not installed (benchmarks/install_peers.py)")
        return found
    script = Path(__file__).parent / "peers" / "byzfl_krum.py"
    words = [str(python), str(script), str(f), str(repeats), str(data.offset), *map(str, data.paths(count))]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(f"byzfl: SKIPPED, it failed: {done.stderr.strip().rpartition(chr(10))[2]}")
        return found
    seconds = statistics.median(map(float, done.stdout.split()))
    return found | {"byzfl": {"seconds": round(seconds, 3)}}


def count_reads(run: Callable[[], None], data: Data, count: int) -> float:
    """Returns how often the numbers of the updates are read."""
    read, block = 0, TensorFile.block

    def counted(self: TensorFile, name: str, start: int, length: int) -> torch.Tensor:
        nonlocal read
        found = block(self, name, start, length)
        read += found.nbytes
        return found

    TensorFile.block = counted  # type: ignore[method-assign]
    try:
        run()
    finally:
        TensorFile.block = block  # type: ignore[method-assign]
    return read / ((count + 1) * data.model.size_bytes)


MEMORY: dict[str, Callable[[Data, int], object]] = {
    "fed_avg": lambda data, count: data.aggregate(Aggregation(FedAvg()), (1,) * count),
    "median": lambda data, count: data.aggregate(Aggregation(Median()), (1,) * count),
    "krum": lambda data, count: data.aggregate(Aggregation(Krum(1)), (1,) * count),
    "torch.median": lambda data, count: data.stacked(count).median(dim=0),
}


def run_alone(data: Data, name: str, count: int, begin: Any) -> None:
    """Runs a contender in a process of its own, which is prepared as a worker is."""
    prepare()
    begin.wait()
    MEMORY[name](data, count)


def peak(data: Data, name: str, count: int) -> float:
    """Returns the MiB of anonymous memory of such a process at its peak, torch included."""
    context = multiprocessing.get_context("spawn")
    begin = context.Event()
    process = context.Process(target=run_alone, args=(data, name, count, begin))
    process.start()
    assert process.pid is not None
    with Usage(process.pid) as usage:
        begin.set()
        process.join()
    if process.exitcode:
        raise SystemExit(f"{name} of {count} updates failed")
    return round(usage.peak_anonymous / MIB, 1)


def prepare() -> None:
    """Prepares this process as a worker."""
    keep_freed_blocks()
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def measure_commit(folder: Path, participants: int, repeats: int) -> dict[str, float]:
    """Returns the median milliseconds from the answer to a round's last update until its version is committed.

    The event of the next round tells that. How long the engine takes for such a round is measured apart.
    """
    small = Data.make(folder / "small", size := 1_000_000)
    weights = tuple(range(1, participants + 1))
    alone = in_turn({"engine": lambda: small.aggregate(Aggregation(FedAvg()), weights)}, repeats)
    numbers = np.random.default_rng(3)
    model = {f"layer.{layer}": numbers.standard_normal(size // 40, np.float32) for layer in range(10)}
    delays = []
    with (
        fedround_server(folder / "data", "--log-level", "warning") as server,
        fr.connect(server.address, server.token) as admin,
    ):
        _, actor_token = admin.create_user("actor", role="ACTOR")
        users = [admin.create_user(f"client {number}") for number in range(participants)]
        clients = [fr.connect(server.address, token) for _, token in users]
        with fr.connect(server.address, actor_token) as actor:
            ids = [user.user_id for user, _ in users]
            training = actor.create_training(
                model, name="benchmark", target_num_updates=repeats + 1, client_ids=ids, evaluation="NEVER"
            )
            events = actor.watch(training.training_id)
            actor.start_training(training.training_id)
            answered = 0.0
            for event in events:
                if answered and (event.HasField("round_started") or event.HasField("training_finished")):
                    delays.append(time.perf_counter() - answered)
                if event.HasField("training_finished"):
                    break
                if event.HasField("round_started"):
                    for number, client in enumerate(clients):
                        update = {name: values + np.float32(number + 1) for name, values in model.items()}
                        client.submit_update(training.training_id, event.round_started.round, update, number + 1)
                    answered = time.perf_counter()
        for client in clients:
            client.close()
    return {
        "milliseconds": round(1000 * statistics.median(delays[1:]), 1),
        "engine_alone": round(1000 * alone["engine"]["seconds"], 1),
    }


RATIOS = (
    ("NumPy / FedAvg", "means", "numpy", "fed_avg"),
    ("NumPy / FedAvg, 2 threads", "means", "numpy", "fed_avg, 2 threads"),
    ("reading / FedAvg", "means", "reading", "fed_avg"),
    ("reading / FedAvg, 2 threads", "means", "reading", "fed_avg, 2 threads"),
    ("FedAvg, 1 thread / 2 threads", "means", "fed_avg", "fed_avg, 2 threads"),
    ("FedAvgM / FedAvg", "means", "sgd", "fed_avg"),
    ("FedAdam / FedAvg", "means", "adam", "fed_avg"),
    ("FedYogi / FedAvg", "means", "yogi", "fed_avg"),
    ("torch.median / median", "columns", "torch.median", "median"),
    ("torch.sort / trimmed mean", "columns", "torch.sort", "trimmed_mean"),
    ("byzfl / Krum", "krum", "byzfl", "krum"),
    ("memory, median / torch.median", "memory", "median, 8", "torch.median, 8"),
    ("memory, FedAvg, 100 / 8 updates", "memory", "fed_avg, 100", "fed_avg, 8"),
    ("memory, median, 100 / 8 updates", "memory", "median, 100", "median, 8"),
    ("memory, Krum, 100 / 8 updates", "memory", "krum, 100", "krum, 8"),
)


def ratios(figures: Mapping[str, Any]) -> dict[str, float]:
    """Returns what is asked of the engine, as ratios of medians of one run: of time by the clock, or of memory."""
    found = {}
    for name, group, first, second in RATIOS:
        if group in figures and first in figures[group]:
            values = figures[group][first], figures[group][second]
            above, below = (one["seconds"] if isinstance(one, dict) else one for one in values)
            found[name] = round(above / below, 3)
    return found


def measure_memory(data: Data) -> dict[str, float]:
    """Returns the peaks of memory in MiB of 8 and 100 updates; torch's own function gets 8."""
    pairs = [(name, count) for name in MEMORY for count in (8, 100) if (name, count) != ("torch.median", 100)]
    return {f"{name}, {count}": peak(data, name, count) for name, count in pairs}


def main() -> None:
    """Measures, and writes the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=20, help="size of a model, in millions of bytes")
    parser.add_argument("--many", type=int, default=20, help="updates of Krum")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--participants", type=int, default=32, help="of the server's rounds, of 1 MB each")
    parser.add_argument("--folder", type=Path, help="where data goes; a temporary folder by default")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="measure only these; implies --no-keep")
    parser.add_argument("--no-keep", action="store_true", help="leave results.json as it is")
    chosen = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="fedround-aggregation-") as name:
        data = Data.make(Path(name), int(chosen.mb * 1e6) // 4 * 4)
        groups: dict[str, Callable[[], dict[str, Any]]] = {
            "means": lambda: measure_means(data, chosen.repeats),
            "columns": lambda: measure_columns(data, chosen.repeats),
            "krum": lambda: measure_krum(data, chosen.many, chosen.repeats),
            "memory": lambda: measure_memory(data),
            "commit": lambda: measure_commit(Path(name), chosen.participants, chosen.repeats),
        }
        figures: dict[str, Any] = {"mb": chosen.mb, "many": chosen.many, "repeats": chosen.repeats}
        figures |= {group: measure() for group, measure in groups.items() if group in (chosen.only or groups)}
    figures["ratios"] = ratios(figures)
    for group, found in figures.items():
        print(f"{group}: {found}")
    if not chosen.no_keep and not chosen.only:
        keep("aggregation", figures)


if __name__ == "__main__":
    main()
