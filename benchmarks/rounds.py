"""Measures rounds of fedround and of its peers: the same work, in turn, on the same machine.

A server and its clients, in processes of their own, over TCP on this machine. In each round every client gets the whole
model, changes one number and sends all of it back, and the server averages what it got. A round lasts from its start to
that of the next one; the first one waits for the clients to start, and is left out. The systems take turns, again and
again, so that a busy moment of the machine does not fall on one of them alone.

`--systems all` are all of them. `--systems contenders` leaves out the peers that were never the fastest in a run of all
(Flower's SuperLink was five times slower than its classic server or worse; NVFlare with its defaults waits for two
seconds where the one that asks often does not). A peer has only one turn if that takes long, or if its rounds were
several times slower than those of the fastest peer: no ratio is computed with it.

A peer that is not installed (see install_peers.py), or fails, is named in the results with the reason.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from disk import measure_disk, told
from install_peers import PEERS
from measure import keep, touch, touch_free_memory
from peers.systems import SYSTEMS
from servers import BEFORE, DEFAULT_SYNC_MS, SYNC_MS
from training import Failed, Run, adopt_orphans, run_training

WORKLOADS = ("4x100", "3x250", "7x33", "4x10", "24x2", "32x1", "32x1x300", "100x0.01")
LAYERS = 10
LARGE = 50.0
"""From how many megabytes on groups of systems have those that send differences."""
FRESH_BYTES = 200_000_000
"""How much memory is written to for the first time, to see what that costs: 0.3 to 4 ms a MB on virtual machines."""
SLOW_PEERS = ("flower_superlink", "nvflare")
"""Peers that were never the fastest."""
GROUPS = ("all", "contenders")

Figures = dict[str, Any]


def chosen(names: Sequence[str], megabytes: float) -> list[str]:
    """Returns the systems that names and groups mean for a model of a size."""
    found = [name for name in names if name not in GROUPS]
    for name, system in SYSTEMS.items() if set(names) & set(GROUPS) else ():
        is_out = system.kinds or (system.relative_error and megabytes < LARGE)
        if not is_out and ("all" in names or name not in SLOW_PEERS):
            found.append(name)
    return list(dict.fromkeys(found))


def summary(runs: list[Run], turns: list[float]) -> Figures:
    """Returns what all runs of one system on one workload say together."""
    seconds = [second for run in runs for second in run.seconds]
    return {
        "version": runs[0].version,
        "seconds": round(statistics.median(seconds), 4),
        "fastest": round(min(seconds), 4),
        "slowest": round(max(seconds), 4),
        "each": [[round(second, 4) for second in run.seconds] for run in runs],
        "run_medians": [round(statistics.median(run.seconds), 4) for run in runs],
        "server_peak_anonymous_bytes": max(run.server_peak_anonymous for run in runs),
        "server_cpu_seconds": round(statistics.median(run.server_cpu for run in runs), 3),
        "clients_cpu_seconds": round(statistics.median(run.clients_cpu for run in runs), 3),
        "turn_seconds": round(statistics.median(turns), 1),
    }


def with_ratios(systems: Figures) -> Figures:
    """Adds how many times as fast as the fastest peer each system was, of all medians and turn by turn.

    Without peers, nothing is added.
    """
    peers = {name: figures["seconds"] for name, figures in systems.items() if SYSTEMS[name].is_peer}
    if not peers:
        return systems
    fastest = systems[min(peers, key=lambda name: peers[name])]
    for figures in systems.values():
        figures["speed_of_fastest_peer"] = round(fastest["seconds"] / figures["seconds"], 3)
        pairs = zip(fastest["run_medians"], figures["run_medians"], strict=False)
        figures["speed_by_turn"] = [round(peer / own, 3) for peer, own in pairs]
    return systems


def measure(workload: str, options: argparse.Namespace) -> Figures:
    """Runs one workload on all systems in turn; one that fails once is not tried again."""
    clients, megabytes, *more = workload.split("x")
    layers = int(more[0]) if more else LAYERS
    runs: dict[str, list[Run]] = {name: [] for name in chosen(options.systems, float(megabytes))}
    turns: dict[str, list[float]] = {name: [] for name in runs}
    absent: dict[str, str] = {}
    slow: set[str] = set()
    start = {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 1),
        "fresh_memory_ms_per_mb": touch(FRESH_BYTES),
    }
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
                print(f"{workload:>8}  {SYSTEMS[name].label:<32}  ABSENT: {error}", flush=True)
                continue
            runs[name].append(run)
            turns[name].append(time.monotonic() - begin)
            each = " ".join(f"{second:.3f}" for second in run.seconds)
            print(f"{workload:>8}  {SYSTEMS[name].label:<32}  seconds a round: {each}", flush=True)
        slow |= too_slow(runs, turns, options)
    done = {name: summary(some, turns[name]) for name, some in runs.items() if some and name not in absent}
    size = {"clients": int(clients), "megabytes": float(megabytes), "layers": layers}
    return {**size, **start, "systems": with_ratios(done), "absent": absent}


def too_slow(runs: dict[str, list[Run]], turns: dict[str, list[float]], options: argparse.Namespace) -> set[str]:
    """Returns the peers that have no other turn: it takes too long, or the fastest peer is several times as fast."""
    medians = {
        name: statistics.median(second for run in some for second in run.seconds)
        for name, some in runs.items()
        if some and SYSTEMS[name].is_peer
    }
    least = min(medians.values(), default=0.0)
    return {
        name
        for name, median in medians.items()
        if median > least and (median > options.chance * least or max(turns[name]) > options.patience)
    }


def show(results: dict[str, Any]) -> None:
    """Prints the table."""
    print()
    print(f"workload  {'system':<32}  s/round   speed  (by turn)     server MB  server CPU s  clients CPU s  s/turn")
    for workload, result in results.items():
        for name, figures in result["systems"].items():
            speed, by_turn = figures.get("speed_of_fastest_peer"), figures.get("speed_by_turn")
            spread = f"{min(by_turn):.2f} to {max(by_turn):.2f}" if by_turn else ""
            print(
                f"{workload:>8}  {SYSTEMS[name].label:<32}  {figures['seconds']:7.3f}"
                f"  {'' if speed is None else f'{speed:.2f}':>6}  {spread:<12}"
                f"  {figures['server_peak_anonymous_bytes'] / 1e6:9.0f}"
                f"  {figures['server_cpu_seconds']:12.2f}  {figures['clients_cpu_seconds']:13.2f}"
                f"  {figures['turn_seconds']:6.0f}"
            )
        for name, why in result["absent"].items():
            print(f"{workload:>8}  {SYSTEMS[name].label:<32}  absent: {why}")
    print("speed: in times of the fastest peer; memory: the most at once; CPU: per round")


def main() -> None:
    """Measures, prints a table, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS, *GROUPS], default=["fedround"])
    parser.add_argument(
        "--workloads", nargs="+", default=WORKLOADS, help="CLIENTSxMEGABYTES[xLAYERS], with 10^6 bytes each"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how many are counted in a run")
    parser.add_argument("--alternations", type=int, default=2, help="how often each system has its turn")
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of the peers' environments")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="where servers keep their files")
    parser.add_argument("--patience", type=float, default=60, help="seconds of a turn after which a peer has no other")
    parser.add_argument("--chance", type=float, default=2, help="a peer so many times slower has one turn")
    parser.add_argument("--before", type=Path, help="another checkout of fedround, for the systems that are called so")
    parser.add_argument("--sync-ms", type=float, default=DEFAULT_SYNC_MS, help="how much longer a slow sync takes")
    parser.add_argument("--timeout", type=float, default=240, help="seconds that a run may take")
    options = parser.parse_args()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    # Systems run in another folder.
    options.peers = options.peers.absolute()
    os.environ[SYNC_MS] = str(options.sync_ms)
    if options.before:
        os.environ[BEFORE] = str(options.before)
    touch_free_memory()
    disk = measure_disk(options.folder)
    print(f"disk: {told(disk)}", flush=True)
    results: Figures = {}
    for workload in options.workloads:
        results[workload] = measure(workload, options)
        # What is done stays, if the rest is interrupted.
        keep(
            section(options.systems),
            {
                "rounds": options.rounds,
                "alternations": options.alternations,
                "disk": disk,
                "sync_ms": options.sync_ms,
                "workloads": results,
            },
        )
    show(results)


def section(names: Sequence[str]) -> str:
    """Returns where results belong: without peers there is nothing to compare, and what is known of them stays."""
    if any(SYSTEMS[name].kinds for name in names if name not in GROUPS):
        return "rounds_slow_syncs"
    is_alone = not any(name in GROUPS or SYSTEMS[name].is_peer for name in names)
    return "rounds_alone" if is_alone else "rounds"


if __name__ == "__main__":
    main()
