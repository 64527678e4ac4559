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
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np
from safetensors.numpy import save_file

from fedround_client.payload import CHUNK
from fedround_server.engine.format.finite import NumberCheck
from fedround_server.engine.format.gate import HeaderGate
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


@dataclass(frozen=True)
class Limit:
    """What one thing takes: bytes a second, and nanoseconds of CPU a byte."""

    rate: float
    cpu: float


@dataclass
class Times:
    """What one thing took, again and again: seconds, and seconds of CPU of all that took part."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def limit(self, size: int) -> Limit:
        """Returns the medians, for so many bytes."""
        return Limit(size / statistics.median(self.seconds), statistics.median(self.cpu) / size * 1e9)


class Limits:
    """Measures limits on a file of random weights, over and over. Its `with` block has the processes for that."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self.path = folder / "weights.safetensors"
        save_file({"w": np.random.default_rng(0).normal(size=size // 4).astype(np.float32)}, self.path)
        self._data = self.path.read_bytes()
        self._chunks = [self._data[start : start + CHUNK] for start in range(0, len(self._data), CHUNK)]
        self._stack = ExitStack()
        self._times: dict[str, Times] = {}

    def __enter__(self) -> Self:
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        command = [sys.executable, "-S", "-c", RECEIVER, str(listener.getsockname()[1]), str(len(self._data))]
        self._receiver = self._stack.enter_context(subprocess.Popen(command))
        self._connection = self._stack.enter_context(listener.accept()[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> None:
        """Measures each once more; the first time does not count."""
        parts = {
            "memory copy": self._timed(self._copy),
            "loopback TCP": self._timed(self._send, self._receiver.pid),
            "disk: write + fsync": self._timed(self._write),
            "SHA-256": self._timed(self._hash),
            "CRC-32C": self._timed(self._checksum),
            "NaN and Inf": self._timed(self._check_numbers),
        }
        if not self._times:
            self._times = {name: Times() for name in parts}
            return
        for name, (seconds, cpu) in parts.items():
            self._times[name].seconds.append(seconds)
            self._times[name].cpu.append(cpu)

    def found(self) -> dict[str, Limit]:
        """Returns the medians."""
        return {name: times.limit(len(self._data)) for name, times in self._times.items()}

    def _timed(self, work: Callable[[], None], *others: int) -> tuple[float, float]:
        """Returns the seconds that work takes, and those of CPU, also of other processes."""
        begin, cpu = time.perf_counter(), time.process_time() + cpu_seconds(others)
        work()
        return time.perf_counter() - begin, time.process_time() + cpu_seconds(others) - cpu

    def _copy(self) -> None:
        target = bytearray(CHUNK)
        for chunk in self._chunks:
            target[: len(chunk)] = chunk

    def _send(self) -> None:
        for chunk in self._chunks:
            self._connection.sendall(chunk)
        self._connection.recv(1)

    def _write(self) -> None:
        path = self._folder / "written"
        with path.open("wb", buffering=0) as file:
            for chunk in self._chunks:
                file.write(chunk)
            os.fsync(file.fileno())
        path.unlink()

    def _hash(self) -> None:
        digest = hashlib.sha256()
        for chunk in self._chunks:
            digest.update(chunk)

    def _checksum(self) -> None:
        for chunk in self._chunks:
            google_crc32c.value(chunk)

    def _check_numbers(self) -> None:
        gate = HeaderGate()
        numbers = NumberCheck(lambda: gate.layout)
        for chunk in self._chunks:
            gate.feed(chunk)
            numbers.feed(chunk)


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as name:
        with Limits(Path(name), options.size_mib * MIB) as measured:
            for _ in range(options.repeats + 1):
                measured.measure()
        limits = measured.found()
    for what, limit in limits.items():
        print(f"{what:22} {limit.rate / 1e9:6.2f} GB/s  {limit.cpu:5.2f} ns of CPU a byte")
    keep("limits", {"limits": {what: asdict(limit) for what, limit in limits.items()}})


if __name__ == "__main__":
    main()
