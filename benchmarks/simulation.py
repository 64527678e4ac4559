"""Measures simulations of many clients on one machine: that of fedround, and that of Flower if it is installed.

All do the same work: in each round, a part of the clients train a small network on data of their own, and the server
averages the models. A run is timed from the start of its process to its end, with all that it starts and stops.

    seconds   median of the runs, and the fastest and the slowest one
    CPU       seconds of CPU in the median run, of all processes that were waited for
    memory    peak of the anonymous memory of all processes together

Runs of the simulators alternate. `install_peers.py` installs Flower into an environment of its own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from install_peers import PEERS
from measure import Usage, keep
from peers.simulated import MARK, Simulated
from peers.systems import SIMULATORS

HERE = Path(__file__).parent


def run(name: str, python: Path, work: Simulated, limit: float) -> dict[str, Any]:
    """Runs a simulation once; returns its figures.

    Raises:
        SystemExit: It failed, or did not do its work.
    """
    words = [work.clients, work.per_round, work.rounds, work.workers]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    start, spent = time.monotonic(), cpu_of_children()
    with (
        subprocess.Popen(
            [str(python), "-m", f"peers.{name}", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process,
        Usage(process.pid) as usage,
    ):
        try:
            text, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit(f"{name}: not done after {limit:.0f} s") from None
        seconds = time.monotonic() - start
    lines = [line.removeprefix(MARK) for line in text.splitlines() if line.startswith(MARK)]
    if process.returncode or not lines:
        raise SystemExit(f"{name} failed with exit code {process.returncode}:\n{text[-3000:]}")
    told = json.loads(lines[-1])
    if told["trained"] != [work.per_round] * work.rounds or round(told["count"], 3) != work.rounds:
        raise SystemExit(f"{name} did not do its work: {told}")
    return {
        "version": told["version"],
        "seconds": seconds,
        "cpu": cpu_of_children() - spent,
        "peak_anonymous": usage.peak_anonymous,
    }


def cpu_of_children() -> float:
    """Returns the seconds of CPU that all children that have ended used, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of several runs of a simulator."""
    median = statistics.median_low([one["seconds"] for one in runs])
    chosen = next(one for one in runs if one["seconds"] == median)
    return {
        "version": chosen["version"],
        "seconds": round(median, 2),
        "fastest": round(min(one["seconds"] for one in runs), 2),
        "slowest": round(max(one["seconds"] for one in runs), 2),
        "cpu": round(chosen["cpu"], 2),
        "peak_mb": round(max(one["peak_anonymous"] for one in runs) / 1e6),
    }


def main() -> None:
    """Measures, prints, and writes the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--per-round", type=int, default=100, help="clients that train in each round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a run may take")
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of the environments")
    parser.add_argument("--dry", action="store_true", help="print the figures only")
    options = parser.parse_args()
    work = Simulated(options.clients, options.per_round, options.rounds, options.workers)
    pythons = {
        name: options.peers / system.environment / "bin" / "python" if system.is_peer else Path(sys.executable)
        for name, system in SIMULATORS.items()
    }
    for name in [name for name, python in pythons.items() if not python.exists()]:
        print(f"{name}: NOT MEASURED, since it is not installed: see install_peers.py")
        del pythons[name]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for _ in range(options.repeats):
        for name, python in pythons.items():
            runs[name].append(run(name, python, work, options.limit))
            print(f"{name}: {runs[name][-1]['seconds']:.1f} s", flush=True)
    figures = {name: summary(found) for name, found in runs.items()}
    for name, found in figures.items():
        spread = f"{found['seconds']} s ({found['fastest']} to {found['slowest']})"
        print(f"{SIMULATORS[name].label} {found['version']}: {spread}, CPU {found['cpu']} s, {found['peak_mb']} MB")
    if not options.dry:
        keep("simulation", {"work": vars(work), "repeats": options.repeats, "systems": figures})


if __name__ == "__main__":
    main()
