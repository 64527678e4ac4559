"""Measures what this machine allows: memory, loopback TCP, the disk, SHA-256, CRC-32C, and a look for NaN and Inf.

Each alone, in one process (TCP in two), over chunks of the size that fedround moves. The limits of gRPC are in
streams.py, whose null handlers they need.
"""

import argparse
import hashlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from safetensors.numpy import save_file

from fedround_client.transfer import CHUNK
from measure import MIB, cpu_seconds, keep

RECEIVER = """
import socket, sys
buffer = bytearray(1 << 20)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    while True:
        left = int(sys.argv[2])
        while left:
            received = connection.recv_into(buffer)
            if not received:
                sys.exit()
            left -= received
        connection.sendall(b"!")
"""
EXAMINER = """
import sys, time
from pathlib import Path
from fedround_server.engine.examination import examine
from fedround_server.engine.worker import _prepare
_prepare()
for _ in range(int(sys.argv[2])):
    begin, cpu = time.perf_counter(), time.process_time()
    examine(Path(sys.argv[1]))
    print(time.perf_counter() - begin, time.process_time() - cpu)
"""


@dataclass(frozen=True)
class Limit:
    """What one thing takes: bytes a second, and nanoseconds of CPU a byte."""

    rate: float
    cpu: float


class Limits:
    """Measures limits on a file of random weights."""

    def __init__(self, folder: Path, size: int, repeats: int) -> None:
        self._folder = folder
        self._repeats = repeats
        self.path = folder / "weights.safetensors"
        save_file({"w": np.random.default_rng(0).normal(size=size // 4).astype(np.float32)}, self.path)
        self._data = self.path.read_bytes()
        self._chunks = [self._data[start : start + CHUNK] for start in range(0, len(self._data), CHUNK)]

    def measure(self) -> dict[str, Limit]:
        """Measures all of them."""
        return {
            "memory copy": self._median(self._copy),
            "loopback TCP": self._tcp(),
            "disk: write + fsync": self._median(self._write),
            "SHA-256": self._median(self._hash),
            "CRC-32C": self._median(self._checksum),
            "NaN and Inf": self._examine(),
        }

    def _median(self, work: Callable[[], None], *others: int) -> Limit:
        """Runs work over and over; the CPU of other processes counts, too."""
        work()
        found = []
        for _ in range(self._repeats):
            begin, cpu = time.perf_counter(), time.process_time() + cpu_seconds(others)
            work()
            found.append((time.perf_counter() - begin, time.process_time() + cpu_seconds(others) - cpu))
        return self._limit(found)

    def _limit(self, found: list[tuple[float, float]]) -> Limit:
        seconds, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        return Limit(len(self._data) / seconds, cpu / len(self._data) * 1e9)

    def _copy(self) -> None:
        target = bytearray(CHUNK)
        for chunk in self._chunks:
            target[: len(chunk)] = chunk

    def _tcp(self) -> Limit:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            command = [sys.executable, "-S", "-c", RECEIVER, str(listener.getsockname()[1]), str(len(self._data))]
            with subprocess.Popen(command) as receiver:
                connection, _ = listener.accept()
                with connection:

                    def send() -> None:
                        for chunk in self._chunks:
                            connection.sendall(chunk)
                        connection.recv(1)

                    return self._median(send, receiver.pid)

    def _write(self) -> None:
        # A new file each time, beside the others: memory that was written to just now is written to more quickly.
        path = self._folder / f"written{len(list(self._folder.iterdir()))}"
        with path.open("wb", buffering=0) as file:
            for chunk in self._chunks:
                file.write(chunk)
            os.fsync(file.fileno())

    def _hash(self) -> None:
        digest = hashlib.sha256()
        for chunk in self._chunks:
            digest.update(chunk)

    def _checksum(self) -> None:
        for chunk in self._chunks:
            google_crc32c.value(chunk)

    def _examine(self) -> Limit:
        command = [sys.executable, "-c", EXAMINER, str(self.path), str(self._repeats + 1)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = [(float(seconds), float(cpu)) for seconds, cpu in map(str.split, printed.splitlines()[1:])]
        return self._limit(found)


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as name:
        limits = Limits(Path(name), options.size_mib * MIB, options.repeats).measure()
    for what, limit in limits.items():
        print(f"{what:22} {limit.rate / 1e9:6.2f} GB/s  {limit.cpu:5.2f} ns of CPU a byte")
    keep("limits", {"limits": {what: asdict(limit) for what, limit in limits.items()}})


if __name__ == "__main__":
    main()
