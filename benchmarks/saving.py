"""Measures what saves bytes, and what that costs.

First, general compression: how much smaller gzip and zstd make chunks of 768 KiB of numbers of different kinds, and how
fast they are. zstd is measured where the package zstandard is there, and left out otherwise.

Second, updates as differences in half precision and in int8 (`update_precision`, `stochastic_rounding`): how fast the
SDK makes them, rounds of a large model through a real server, whose participants use the SDK, and the accuracy of the
demo's network after trainings that differ in nothing else.
"""

import argparse
import logging
import multiprocessing
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import fedround_client as fr
from fedround_client.cache import SharedFile
from fedround_client.differences import difference_sources
from fedround_client.tensors import array_sources
from fedround_client.transport import TensorPrecision, Transport
from measure import MIB, Running, cpu_seconds, fedround_server, keep, tree

CHUNK = 768 * 1024
STOCHASTIC = ", stochastic rounding"
PRECISIONS = ("FULL", "FLOAT16", "BFLOAT16", f"BFLOAT16{STOCHASTIC}", "INT8", f"INT8{STOCHASTIC}")
ENCODED_NUMBERS = 10_000_000
CLIENTS = 3
Codec = tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]


def codecs() -> list[Codec]:
    """Those that are here."""
    found: list[Codec] = [
        (f"gzip -{level}", lambda data, level=level: zlib.compress(data, level), zlib.decompress) for level in (1, 6)
    ]
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        print("zstd: SKIPPED, the package zstandard is not here")
        return found
    for level in (1, 3):
        found.append(
            (f"zstd -{level}", zstandard.ZstdCompressor(level).compress, zstandard.ZstdDecompressor().decompress)
        )
    return found


def numbers() -> dict[str, bytes]:
    """Numbers as they are sent, by what they are."""
    import torch
    from torch import nn

    from fedround_client.demo.data import load

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    digits = load()
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)

    def epoch() -> np.ndarray[Any, np.dtype[np.float32]]:
        for batch in torch.split(torch.randperm(len(labels)), 32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
        return np.concatenate([values.detach().numpy().ravel() for values in network.parameters()])

    before = [epoch() for _ in range(10)][-1]
    trained = epoch()
    difference = trained - before
    random = np.random.default_rng(0).standard_normal(len(trained)).astype(np.float32)
    largest = np.abs(trained).max()
    return {
        "random normal, float32": random.tobytes(),
        "trained weights, float32": trained.tobytes(),
        "difference of a round, float32": difference.tobytes(),
        "difference of a round, float16": difference.astype(np.float16).tobytes(),
        "difference of a round, bfloat16": torch.from_numpy(difference).bfloat16().view(torch.int16).numpy().tobytes(),
        "trained weights, int8": np.round(trained / largest * 127).astype(np.int8).tobytes(),
        "90 % zeros, float32": np.where(np.random.default_rng(1).random(len(random)) < 0.9, 0, random)
        .astype(np.float32)
        .tobytes(),
    }


def rate(size: int, work: Callable[[bytes], bytes], chunks: list[bytes], seconds: float) -> float:
    """MB/s of CPU time, over so many seconds; the chunks stand for so many bytes."""
    begin, done = time.thread_time(), 0
    while (spent := time.thread_time() - begin) < seconds:
        for chunk in chunks:
            work(chunk)
        done += size
    return done / spent / 1e6


def compression(seconds: float) -> dict[str, Any]:
    """Compresses each kind of numbers by each codec, chunk by chunk."""
    found: dict[str, Any] = {}
    known = codecs()
    print(f"{'':34}{'':9}  saves    packs  unpacks")
    for kind, data in numbers().items():
        chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        found[kind] = {}
        for name, pack, unpack in known:
            packed = [pack(chunk) for chunk in chunks]
            saved = 1 - sum(map(len, packed)) / len(data)
            packs = rate(len(data), pack, chunks, seconds)
            unpacks = rate(len(data), unpack, packed, seconds)
            figures = {"saved_percent": round(100 * saved, 1), "pack_mb_s": round(packs), "unpack_mb_s": round(unpacks)}
            found[kind][name] = figures
            print(f"{kind:34}{name:9} {100 * saved:5.1f} % {packs:5.0f} MB/s {unpacks:5.0f} MB/s", flush=True)
    return found


def encoding(seconds: float) -> dict[str, int]:
    """Encodes the differences of a model in each precision, from a file of it; returns MB/s of float32 on one core."""
    random = np.random.default_rng(0)
    model = {"w": random.standard_normal(ENCODED_NUMBERS, np.float32)}
    update = {"w": model["w"] + np.float32(1e-3) * random.standard_normal(ENCODED_NUMBERS, np.float32)}
    found = {}
    with tempfile.TemporaryFile() as file:
        file.write(fr.to_safetensors(model))
        shared = SharedFile(file)
        for precision in PRECISIONS[1:]:
            chosen = transport(precision)
            rule = TensorPrecision(chosen["update_precision"], chosen["stochastic_rounding"])

            def encode(_: bytes, rule: TensorPrecision = rule) -> bytes:
                for source in difference_sources(array_sources(update), shared, Transport(rule)):
                    for _piece in source.pieces(0):
                        pass
                return b""

            found[precision] = round(rate(update["w"].nbytes, encode, [b""], seconds))
            print(f"encoding {precision:32} {found[precision]:5} MB/s", flush=True)
    return found


def transport(precision: str) -> dict[str, Any]:
    """Options of a training whose updates have a precision."""
    return {
        "update_precision": precision.removesuffix(STOCHASTIC),
        "stochastic_rounding": precision.endswith(STOCHASTIC),
    }


def take_part(address: str, token: str, number: int) -> None:
    """A participant of all trainings: of the demo's network if a training's name is a seed, else one that adds."""
    from fedround_client.demo import data, network

    # It will be told of trainings that are removed.
    logging.getLogger("fedround_client").setLevel(logging.ERROR)
    with fr.connect(address, token) as client:
        digits: dict[int, data.Digits] = {}

        def train(model: dict[str, Any], round_: fr.Round) -> tuple[dict[str, Any], int]:
            name = client.get_training(round_.training_id).spec.name
            if not name.isdigit():
                for values in model.values():
                    values += np.float32(0.001) * (number + 1)
                return model, 1
            seed = int(name)
            if seed not in digits:
                digits[seed] = data.split(data.load(), CLIENTS, 0.3, seed).clients[number]
            own = network.derive_seed(seed, number, round_.number)
            return network.train(model, digits[seed], 3, own), len(digits[seed])

        client.participate(train, until_finished=False)


def run(
    admin: fr.Client, running: Running, users: list[str], model: Any, name: str, precision: str, rounds: int
) -> Any:
    """Runs a training; answers its id and model's id, the seconds of its rounds, and CPU seconds of the server."""
    training = admin.create_training(
        model, name=name, target_num_updates=rounds, client_ids=users, **transport(precision)
    )
    admin.start_training(training.training_id)
    before, marks = cpu_seconds(tree(running.pid)), []
    for event in admin.watch(training.training_id, resume_after=0):
        if event.WhichOneof("payload") in ("round_started", "training_finished"):
            marks.append(time.perf_counter())
    cpu = (cpu_seconds(tree(running.pid)) - before) / rounds
    return training, [after - before for before, after in pairwise(marks)], cpu


def precisions(size_mib: int, rounds: int, seeds: Iterable[int]) -> dict[str, Any]:
    """Rounds of a large model, and trainings of the demo's network, in each precision in turn."""
    from fedround_client.demo import data, network

    large = {"w": np.random.default_rng(0).standard_normal(size_mib * MIB // 4).astype(np.float32)}
    times: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    cpus: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    sizes: dict[str, float] = {}
    accuracies: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        with fedround_server(folder) as running, fr.connect(running.address, running.token) as admin:
            made = [admin.create_user(f"client {number}") for number in range(CLIENTS)]
            users = [user.user_id for user, _ in made]
            context = multiprocessing.get_context("spawn")
            processes = [
                context.Process(target=take_part, args=(running.address, token, number), daemon=True)
                for number, (_, token) in enumerate(made)
            ]
            for process in processes:
                process.start()
            # Until all are there: they load torch.
            run(admin, running, users, network.initial_state(0), "0", "FULL", 1)
            for _ in range(2):
                for precision in PRECISIONS:
                    stored = files(folder)
                    training, seconds, cpu = run(admin, running, users, large, "large", precision, rounds)
                    times[precision] += seconds
                    cpus[precision].append(cpu)
                    versions = {version.sha256 for version in admin.model_versions(training.model_id)}
                    new = {name: size for name, size in files(folder).items() if name not in {*stored, *versions}}
                    # All updates are of the same size, and equal ones are one file, here also those of the first time.
                    sizes.setdefault(precision, max(new.values(), default=0))
                    admin.remove_training(training.training_id)
                    admin.remove_model(training.model_id)
            for seed in seeds:
                held_out = data.split(data.load(), CLIENTS, 0.3, seed).held_out
                for precision in PRECISIONS:
                    start = network.initial_state(seed)
                    training, _, _ = run(admin, running, users, start, str(seed), precision, 8)
                    learned = admin.download_model(training.model_id)
                    accuracies[precision].append(network.accuracy(learned, held_out))
            for process in processes:
                process.terminate()
                process.join()
    found = {}
    print(f"\nupdates {'':22} an update      round  server CPU   accuracy, by seed")
    for precision in PRECISIONS:
        median = statistics.median(times[precision])
        found[precision] = {
            "update_mb": round(sizes[precision] / 1e6, 1),
            "round_seconds": round(median, 2),
            "server_cpu_seconds": round(statistics.median(cpus[precision]), 2),
            "accuracies": [round(value, 4) for value in accuracies[precision]],
        }
        told = "  ".join(f"{value:.4f}" for value in accuracies[precision])
        cpu = found[precision]["server_cpu_seconds"]
        print(f"{precision:29} {sizes[precision] / 1e6:8.1f} MB {median:8.2f} s {cpu:9.2f} s   {told}")
    return found


def files(folder: Path) -> dict[str, int]:
    """The sizes of all blobs by digest."""
    return {path.name: path.stat().st_size for path in folder.glob("objects/*/*")}


def main() -> None:
    """Measures all, prints tables, and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of CPU for each rate; 0 leaves compression out")
    parser.add_argument("--size-mib", type=int, default=100, help="of the large model")
    parser.add_argument("--rounds", type=int, default=3, help="of the large model, twice in each precision")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[1, 2, 3], help="of the trainings of the demo's network"
    )
    options = parser.parse_args()
    packed = compression(options.seconds) if options.seconds else {}
    encoded = encoding(options.seconds) if options.seconds else {}
    by_precision = precisions(options.size_mib, options.rounds, options.seeds)
    keep(
        "saving",
        {
            "chunk_bytes": CHUNK,
            "compression": packed,
            "clients": CLIENTS,
            "model_mib": options.size_mib,
            "encoding_mb_s": encoded,
            "update_precision": by_precision,
        },
    )


if __name__ == "__main__":
    main()
