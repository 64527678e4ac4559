"""Measures a start: how long until the server serves, and what it needs when nothing happens.

Each start is a new process on a new folder, with the modules compiled, as an installed package has them; the very first
one, which compiles them, is told apart. A server serves when its health check says so; its line comes no earlier. Next
to it stands what Python needs to import grpc and peewee and to do nothing else. Memory and CPU are looked at when torch
is loaded in the worker and all is quiet: anonymous memory is what a process holds for itself, while what is resident
besides is mapped from files (most of it torch's libraries), which all processes share and the system may drop.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from measure import MIB, anonymous, cpu_seconds, fedround_server, keep, resident, tree

SERVICE = "fedround.v1.TrainingService"
SDK = ("import fedround_client", "import fedround_client; fedround_client.connect", "import grpc, numpy")


def start(folder: Path, quiet_seconds: float, idle_seconds: float) -> dict[str, float]:
    """Starts a server, and watches it do nothing.

    Args:
        folder: Where its data goes.
        quiet_seconds: How long until all is quiet.
        idle_seconds: How long its CPU is counted then.
    """
    begin = time.perf_counter()
    with fedround_server(folder, "--log-level", "warning") as server:
        line = time.perf_counter() - begin
        with grpc.insecure_channel(server.address) as channel:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=SERVICE), timeout=10)
        if answer.status != HealthCheckResponse.SERVING:
            raise SystemExit("the server said that it serves, and does not")
        serving = time.perf_counter() - begin
        time.sleep(quiet_seconds)
        workers = [pid for pid in tree(server.pid) if pid != server.pid]
        before = cpu_seconds([server.pid]), cpu_seconds(workers)
        time.sleep(idle_seconds)
        used = cpu_seconds([server.pid]) - before[0], cpu_seconds(workers) - before[1]
        return {
            "line": line,
            "serving": serving,
            "server_anonymous": anonymous([server.pid]),
            "server_resident": resident([server.pid]),
            "worker_anonymous": anonymous(workers),
            "worker_resident": resident(workers),
            "server_cpu": used[0],
            "worker_cpu": used[1],
        }


def sdk_import(statement: str) -> float:
    """Seconds that a new Python needs for a statement, without its own start."""
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    return float(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)


def limit() -> float:
    """Seconds that a Python needs to import what every server imports."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import grpc, peewee"], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--quiet-seconds", type=float, default=5, help="until torch is loaded and all is quiet")
    parser.add_argument("--idle-seconds", type=float, default=30, help="of the last start, in which CPU is counted")
    options = parser.parse_args()
    found, limits, imports = [], [], []
    with tempfile.TemporaryDirectory() as name:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{name}/compiled"
        first = start(Path(name) / "first", options.quiet_seconds, 0)
        limit()
        sdk_import(SDK[-1])
        for number in range(options.starts):
            last = number == options.starts - 1
            found.append(start(Path(name) / str(number), options.quiet_seconds, options.idle_seconds if last else 0))
            limits.append(limit())
            imports.append([sdk_import(statement) for statement in SDK])
    middle = {what: statistics.median(one[what] for one in found) for what in first}
    cpu = {what: round(found[-1][what] / options.idle_seconds * 60, 3) for what in ("server_cpu", "worker_cpu")}
    mib = {what: round(middle[what] / MIB, 1) for what in middle if what.endswith(("anonymous", "resident"))}
    slowest = max(one["serving"] for one in found)
    print(f"serving after {middle['serving']:.2f} s, slowest {slowest:.2f} s; {first['serving']:.2f} s with compiling")
    print(f"imports of grpc and peewee alone: {statistics.median(limits):.2f} s")
    sdk = [statistics.median(one) for one in zip(*imports, strict=True)]
    print(
        f"SDK: imported in {sdk[0]:.3f} s, with its first use in {sdk[1]:.3f} s; grpc and numpy alone: {sdk[2]:.3f} s"
    )
    for process in ("server", "worker"):
        own, mapped, busy = mib[f"{process}_anonymous"], mib[f"{process}_resident"], cpu[f"{process}_cpu"]
        print(f"idle {process}: {own} MiB of its own, {mapped} MiB resident, {busy} s of CPU a minute")
    keep(
        "start",
        {
            "starts": options.starts,
            "seconds_to_serving": round(middle["serving"], 3),
            "seconds_to_line": round(middle["line"], 3),
            "slowest": round(slowest, 3),
            "first": round(first["serving"], 3),
            "imports_alone": round(statistics.median(limits), 3),
            "sdk_import": round(sdk[0], 3),
            "sdk_first_use": round(sdk[1], 3),
            "grpc_and_numpy_alone": round(sdk[2], 3),
            **{f"idle_{what}_mib": value for what, value in mib.items()},
            **{f"idle_{what}_seconds_per_minute": value for what, value in cpu.items()},
        },
    )


if __name__ == "__main__":
    main()
