"""What the benchmarks share: a server to measure, what its processes use, the limits of a file, the file of results."""

import json
import mmap
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from servers import PREFIX

RESULTS = Path(__file__).parent / "results.json"
MIB = 1024 * 1024
LOOKS = 50
"""How often memory is looked at, in times a second."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Running:
    """A server that serves.

    Attributes:
        address: HOST:PORT.
        token: The admin's.
        pid: Its process; the workers are below it.
    """

    address: str
    token: str
    pid: int


@contextmanager
def fedround_server(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Runs a fedround server on a free port for the time of the block.

    Args:
        folder: Its data directory; its log goes next to it.
        arguments: More words for its command line.
        environment: What its environment has more than this process's; by default what is meant for servers there.
    """
    if environment is None:
        own = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
        environment = {name.removeprefix(PREFIX): value for name, value in own.items()}
    command = [
        sys.executable,
        "-m",
        "fedround_server",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        str(folder),
        *arguments,
    ]
    log = folder.parent / f"{folder.name}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
        ) as process,
    ):
        try:
            assert process.stdout
            ready = process.stdout.readline()
            if "is serving on" not in ready:
                raise SystemExit(f"the server did not start: {ready}{log.read_text()}")
            token = (folder / "admin.token").read_text().strip()
            yield Running(ready.split()[-1], token, process.pid)
        finally:
            process.terminate()


def tree(pid: int, without: Collection[int] = ()) -> list[int]:
    """Returns a process and all below it, without some and all below those."""
    found = [pid]
    for process in found:
        try:
            for task in Path(f"/proc/{process}/task").iterdir():
                children = (int(child) for child in (task / "children").read_text().split())
                found += [child for child in children if child not in without]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def anonymous(pids: Iterable[int]) -> int:
    """Returns the bytes of memory that processes hold for themselves: what a file backs can be dropped at any time."""
    return sum(_status(pid, "RssAnon:") for pid in pids)


def resident(pids: Iterable[int]) -> int:
    """Returns the bytes of memory of processes that are resident; pages that they share are counted for each."""
    return sum(_status(pid, "VmRSS:") for pid in pids)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Returns the seconds of CPU that processes and their ended children have used, in user and in kernel mode."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS


class Usage:
    """What a process and all below it use during a `with` block.

    Their memory is looked at fifty times a second, and which they are once a second: looking takes CPU, too.

    Attributes:
        peak_anonymous: Most bytes of anonymous memory that all had together.
        cpu: Seconds of CPU that they used, also those that ended meanwhile.
    """

    def __init__(self, pid: int, without: Collection[int] = ()) -> None:
        self._pid = pid
        self._without = without
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = 0.0
        self.peak_anonymous = 0
        self.cpu = 0.0

    def __enter__(self) -> "Usage":
        self._before = cpu_seconds(tree(self._pid, self._without))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.cpu = cpu_seconds(tree(self._pid, self._without)) - self._before

    def _watch(self) -> None:
        while True:
            processes = tree(self._pid, self._without)
            for _ in range(LOOKS):
                self.peak_anonymous = max(self.peak_anonymous, anonymous(processes))
                if self._ended.wait(1 / LOOKS):
                    return


def keep(name: str, figures: Mapping[str, Any]) -> None:
    """Writes the figures of a benchmark into the file of results, next to those of the others."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), **figures}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Returns what the figures depend on."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "processor": processor,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "torch": version("torch"),
        # Others were at work, too: the load when this was written down, beside the benchmark's own.
        "load": round(os.getloadavg()[0], 1),
    }


def touch_free_memory(left_bytes: int = 2 << 30) -> None:
    """Writes to each page of the memory that is free, except for a rest, and frees it again.

    A virtual machine often gets memory from its host at the first write: that took 2.7 ms for each MB on one, next to
    0.3 ms for writing a MB to a file. Whoever uses fresh memory first would pay for it, which says nothing about a
    server that runs for weeks.
    """
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemFree:")), 0)
    if free > left_bytes:
        touch(free - left_bytes)


def touch(size: int) -> float:
    """Writes to each page of fresh memory, and frees it again.

    Args:
        size: How many bytes.

    Returns:
        Milliseconds for each MB.
    """
    begin = time.perf_counter()
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1
    return round((time.perf_counter() - begin) / size * 1e9, 2)


def wait_for(seconds: float, condition: Any, step: float = 0.05) -> None:
    """Waits until a condition holds.

    Raises:
        SystemExit: It does not hold after so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"nothing after {seconds} s: {condition}")
        time.sleep(step)


def _status(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)
