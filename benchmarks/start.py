"""Measures a start: how long until the server serves, and what it needs when nothing happens.

Each start is a new process on a new folder. Next to it stands the limit of this machine, measured in turn: a Python
that imports grpc and peewee, and does nothing else.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "start.json"
MIB = 1024 * 1024


def resident(pid: int) -> int:
    """Bytes of memory of a process that are resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) << 10


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def start(folder: Path, idle_seconds: float) -> tuple[float, int, int]:
    """Starts a server.

    Returns:
        Seconds until it serves; resident memory of the server, and of the processes below it, when idle.
    """
    command = [sys.executable, "-m", "fedround_server", "--listen", "127.0.0.1:0", "--data-dir", str(folder)]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            if "is serving on" not in process.stdout.readline():
                raise SystemExit("the server did not start")
            seconds = time.perf_counter() - begin
            time.sleep(idle_seconds)
            return seconds, resident(process.pid), sum(resident(child) for child in children(process.pid))
        finally:
            process.terminate()


def limit() -> float:
    """Seconds that a Python needs to import what every server imports."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import grpc, peewee"], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--idle-seconds", type=float, default=5, help="until torch is loaded and all is quiet")
    options = parser.parse_args()
    found, limits = [], []
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.starts):
            found.append(start(Path(name) / str(number), options.idle_seconds))
            limits.append(limit())
    seconds, server, worker = (statistics.median(column) for column in zip(*found, strict=True))
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "starts": options.starts,
        "seconds_to_serving": round(seconds, 3),
        "slowest": round(max(one[0] for one in found), 3),
        "limit": round(statistics.median(limits), 3),
        "server_mib": round(server / MIB, 1),
        "worker_mib": round(worker / MIB, 1),
    }
    print(f"serving after {seconds:.2f} s (slowest {result['slowest']:.2f} s, imports alone {result['limit']:.2f} s)")
    print(
        f"idle: {server / MIB:.0f} MiB resident in the server, {worker / MIB:.0f} MiB in its worker, which holds torch"
    )
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
