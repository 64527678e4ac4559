"""Measures uploads and downloads of one large file, against what the machine allows.

An upload costs CPU for gRPC on both sides, two checksums, a SHA-256, the write with its fsync, and the look for NaN and
Inf. Each is measured alone, in the same run; what they take together, spread evenly over all cores, is the rate that
the machine allows, unless one of them alone is slower. A download is compared with a handler that sends the same chunk
over and over. Every upload is acknowledged: on disk, checked, committed.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fedround_client as fr
from limits import Limit, Limits, Times
from measure import MIB, Usage, cpu_seconds, fedround_server, keep, machine, tree

HERE = Path(__file__).parent


class Peer:
    """A client process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read()

    def ask(self, what: str) -> float:
        """Has it do something; returns the seconds of CPU that it used."""
        assert self._process.stdin
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._read().split()[1])

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a client ended")
        return line


def peer(stack: ExitStack, address: str, token: str, path: Path) -> Peer:
    """Starts a client process."""
    command = [sys.executable, str(HERE / "stream_client.py"), address, token, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return Peer(process)


@contextmanager
def null_server() -> Iterator[tuple[str, int]]:
    """Runs the null handlers; yields their address and process."""
    command = [sys.executable, str(HERE / "null_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"127.0.0.1:{process.stdout.readline().strip()}", process.pid
        finally:
            process.terminate()


def together(peers: Sequence[Peer], what: str, server: int, times: Times) -> None:
    """Has clients do something at once, and notes what all of it took."""
    used: list[float] = []
    threads = [threading.Thread(target=lambda one=one: used.append(one.ask(what))) for one in peers]
    before, begin = cpu_seconds(tree(server)), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.seconds.append(time.perf_counter() - begin)
    times.cpu.append(sum(used) + cpu_seconds(tree(server)) - before)


def allowed(parts: dict[str, Limit]) -> float:
    """Returns the rate that parts allow together: all cores busy, and none of the parts slower than alone."""
    cores = int(machine()["cores"])
    return min(cores * 1e9 / sum(part.cpu for part in parts.values()), *(part.rate for part in parts.values()))


def measure(size_mib: int, repeats: int, folder: Path) -> dict[str, object]:
    """Measures all, in turn."""
    limits = Limits(folder, size_mib * MIB)
    size = limits.path.stat().st_size
    names = ("gRPC up", "up", "4 up", "gRPC down", "down", "4 down")
    times = {name: Times() for name in names}
    with ExitStack() as stack:
        stack.enter_context(limits)
        null, null_pid = stack.enter_context(null_server())
        running = stack.enter_context(fedround_server(folder / "data"))
        with fr.connect(running.address, running.token) as admin:
            _, token = admin.create_user("benchmark", "ACTOR")
        raw = [peer(stack, null, "none", limits.path)]
        peers = [peer(stack, running.address, token, limits.path) for _ in range(4)]
        with Usage(running.pid) as usage:
            for number in range(repeats + 1):
                limits.measure()
                for name, who, what, pid in (
                    ("gRPC up", raw, "drop", null_pid),
                    ("up", peers[:1], "up", running.pid),
                    ("4 up", peers, "up", running.pid),
                    ("gRPC down", raw, "fill", null_pid),
                    ("down", peers[:1], "down", running.pid),
                    ("4 down", peers, "down", running.pid),
                ):
                    # The first time, connections are made and memory is taken.
                    together(who, what, pid, times[name] if number else Times())
    alone = limits.found()
    found = {name: times[name].limit(size * (4 if name.startswith("4") else 1)) for name in names}
    checksum = alone["CRC-32C"]
    parts = {
        "gRPC": found["gRPC up"],
        "CRC-32C, twice": Limit(checksum.rate, 2 * checksum.cpu),
        "SHA-256": alone["SHA-256"],
        "write + fsync": alone["disk: write + fsync"],
        "NaN and Inf": alone["NaN and Inf"],
    }
    bounds = {"up": allowed(parts), "4 up": allowed(parts), "down": found["gRPC down"].rate}
    bounds["4 down"] = bounds["down"]
    return {
        "size_bytes": size,
        "peak_anonymous_mib": round(usage.peak_anonymous / MIB, 1),
        "parts": {
            name: {"rate": part.rate, "cpu": part.cpu} for name, part in {**alone, "gRPC": parts["gRPC"]}.items()
        },
        "gRPC": {name: found[name].rate for name in ("gRPC up", "gRPC down")},
        "streams": {
            name: {
                "rate": found[name].rate,
                "cpu": found[name].cpu,
                "allowed": bound,
                "share": found[name].rate / bound,
            }
            for name, bound in bounds.items()
        },
    }


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=HERE) as name:
        found = measure(options.size_mib, options.repeats, Path(name))
    for part, limit in found["parts"].items():  # type: ignore[attr-defined]
        print(f"alone: {part:20} {limit['rate'] / 1e9:6.2f} GB/s  {limit['cpu']:5.2f} ns of CPU a byte")
    for stream, one in found["streams"].items():  # type: ignore[attr-defined]
        print(
            f"{stream:6} {one['rate'] / 1e9:5.2f} GB/s of {one['allowed'] / 1e9:5.2f} allowed: {one['share']:4.0%},"
            f"  {one['cpu']:5.2f} ns of CPU a byte"
        )
    keep("streams", found)


if __name__ == "__main__":
    main()
