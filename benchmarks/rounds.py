"""Measures rounds of fedround and of its peers: the same work, in turn, on the same machine.

A server and its clients, in processes of their own, over TCP on this machine. In each round every client gets the whole
model, changes one number and sends all of it back, and the server averages what it got. A round lasts from its start to
that of the next one; the first one waits for the clients to start, and is left out. The systems take turns, again and
again, so that a busy moment of the machine does not fall on one of them alone; one that takes long has only one turn.

A peer that is not installed (see install_peers.py), or fails, is named in the results with the reason.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from install_peers import PEERS
from measure import keep
from peers.systems import SYSTEMS
from training import Failed, Run, adopt_orphans, run_training

WORKLOADS = ("4x100", "4x10", "32x1", "32x1x300")
LAYERS = 10


def summary(runs: list[Run]) -> dict[str, Any]:
    """Returns what all runs of one system on one workload say together."""
    seconds = [second for run in runs for second in run.seconds]
    return {
        "version": runs[0].version,
        "seconds": round(statistics.median(seconds), 4),
        "fastest": round(min(seconds), 4),
        "slowest": round(max(seconds), 4),
        "each": [[round(second, 4) for second in run.seconds] for run in runs],
        "server_peak_anonymous_bytes": max(run.server_peak_anonymous for run in runs),
        "server_cpu_seconds": round(statistics.median(run.server_cpu for run in runs), 3),
        "clients_cpu_seconds": round(statistics.median(run.clients_cpu for run in runs), 3),
    }


def with_ratios(systems: dict[str, Any]) -> dict[str, Any]:
    """Adds how many times as fast as the fastest peer each system was; nothing without peers."""
    peers = [figures["seconds"] for name, figures in systems.items() if SYSTEMS[name].is_peer]
    for figures in systems.values() if peers else ():
        figures["speed_of_fastest_peer"] = round(min(peers) / figures["seconds"], 3)
    return systems


def measure(workload: str, systems: Iterable[str], options: argparse.Namespace) -> dict[str, Any]:
    """Runs one workload on all systems in turn; one that fails once is not tried again."""
    clients, megabytes, *more = workload.split("x")
    layers = int(more[0]) if more else LAYERS
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    absent: dict[str, str] = {}
    slow: set[str] = set()
    for _ in range(options.alternations):
        for name in runs:
            if name in absent or name in slow:
                continue
            begin = time.monotonic()
            try:
                run = run_training(
                    name,
                    int(clients),
                    float(megabytes),
                    layers,
                    options.rounds,
                    options.peers,
                    options.folder,
                    options.timeout,
                )
            except Failed as error:
                absent[name] = str(error)
                print(f"{workload:>8}  {SYSTEMS[name].label:<24}  ABSENT: {error}", flush=True)
                continue
            runs[name].append(run)
            if SYSTEMS[name].is_peer and time.monotonic() - begin > options.patience:
                slow.add(name)
            each = " ".join(f"{second:.3f}" for second in run.seconds)
            print(f"{workload:>8}  {SYSTEMS[name].label:<24}  seconds a round: {each}", flush=True)
    done = {name: summary(some) for name, some in runs.items() if some and name not in absent}
    size = {"clients": int(clients), "megabytes": float(megabytes), "layers": layers}
    return {**size, "systems": with_ratios(done), "absent": absent}


def show(results: dict[str, Any]) -> None:
    """Prints the table."""
    print()
    print("workload  system                    s/round   speed  server MB  server CPU s  clients CPU s")
    for workload, result in results.items():
        for name, figures in result["systems"].items():
            speed = figures.get("speed_of_fastest_peer")
            print(
                f"{workload:>8}  {SYSTEMS[name].label:<24}  {figures['seconds']:7.3f}"
                f"  {'' if speed is None else f'{speed:.2f}':>6}"
                f"  {figures['server_peak_anonymous_bytes'] / 1e6:9.0f}"
                f"  {figures['server_cpu_seconds']:12.2f}  {figures['clients_cpu_seconds']:13.2f}"
            )
        for name, why in result["absent"].items():
            print(f"{workload:>8}  {SYSTEMS[name].label:<24}  absent: {why}")
    print("speed: in times of the fastest peer; memory: the most at once; CPU: per round")


def main() -> None:
    """Measures, prints a table, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS, "all"], default=["fedround"])
    parser.add_argument(
        "--workloads", nargs="+", default=WORKLOADS, help="CLIENTSxMEGABYTES[xLAYERS], with 10^6 bytes each"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how many are counted in a run")
    parser.add_argument("--alternations", type=int, default=2, help="how often each system has its turn")
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of the peers' environments")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="where servers keep their files")
    parser.add_argument("--patience", type=float, default=60, help="seconds of a turn after which there is no other")
    parser.add_argument("--timeout", type=float, default=240, help="seconds that a run may take")
    options = parser.parse_args()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    systems = list(SYSTEMS) if "all" in options.systems else options.systems
    results = {workload: measure(workload, systems, options) for workload in options.workloads}
    show(results)
    # Without peers there is nothing to compare; what is known of them stays.
    keep(
        "rounds" if any(SYSTEMS[name].is_peer for name in systems) else "rounds_alone",
        {"rounds": options.rounds, "alternations": options.alternations, "workloads": results},
    )


if __name__ == "__main__":
    main()
