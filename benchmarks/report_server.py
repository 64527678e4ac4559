"""The sections on subscribers, start-up and growth."""

from pathlib import Path
from typing import Any

Figures = dict[str, Any]
SHAPES = {"few": "over 100 connections", "own": "each over its own connection"}
EVENTS = {
    "round_extended": "`round_extended`, a single event",
    "round_closed": "`round_closed`, followed by the next event",
    "round_started": "`round_started`, the next event",
    "training_removed": "`training_removed`, followed by the end of the stream",
}


def subscribers(figures: Figures, _: Path) -> str:
    """Makes a table of both shapes."""
    shapes = [(SHAPES[name], figures[name]) for name in SHAPES if name in figures]
    lines = [
        f"{figures['subscribers']:,} subscriptions, {figures['date']}; clients and server share the machine.",
        "",
        f"| | {' | '.join(title for title, _ in shapes)} |",
        f"|---|{'--:|' * len(shapes)}",
        _row("memory per subscription", [f"{shape['kb_a_subscription']:.1f} kB" for _, shape in shapes]),
        _row("CPU per event and subscriber: server, subscribers", [_cpu(shape) for _, shape in shapes]),
        _row("CPU when idle, share of one core", [f"{shape['idle_cpu']:.1%}" for _, shape in shapes]),
    ]
    for event, what in EVENTS.items():
        delays = [shape[event] for _, shape in shapes]
        told = [f"{one['p50']:.2f} s, {one['p99']:.2f} s, {one['max']:.2f} s" for one in delays]
        lines.append(_row(f"{what}; delay until received: p50, p99, maximum", told))
    if all("bare_calls" in shape for _, shape in shapes):
        bare = [shape["bare_calls"] for _, shape in shapes]
        costs = [f"{one['cpu_a_delivery_us']} us, {one['cpu_an_end_us']} us" for one in bare]
        lines.append(_row("bare calls of gRPC: CPU per subscriber for an event, and for the last one", costs))
        for event in ("round_extended", "training_removed"):
            told = [f"{one[event]['p50']:.2f} s, {one[event]['p99']:.2f} s, {one[event]['max']:.2f} s" for one in bare]
            lines.append(_row(f"bare calls of gRPC: `{event}`", told))
    for number in range(max(len(shape["storms"]) for _, shape in shapes)):
        storms = [shape["storms"][number] if number < len(shape["storms"]) else None for _, shape in shapes]
        lines.append(
            _row(
                f"reconnect storm {number + 1}: time until all are subscribed again, remaining errors",
                ["" if one is None else f"{one['seconds']:.1f} s, {one['errors_left']}" for one in storms],
            )
        )
    lines.append(
        _row("memory that remains after all have disconnected", [f"{shape['mib_left']:.0f} MiB" for _, shape in shapes])
    )
    return "\n".join(lines)


def start(figures: Figures, _: Path) -> str:
    """Says how long a start takes, and what an idle server needs."""
    cpu = figures["idle_server_cpu_seconds_per_minute"] + figures["idle_worker_cpu_seconds_per_minute"]
    return (
        f"The server serves {figures['seconds_to_serving']:.2f} s after its start (slowest of {figures['starts']}:"
        f" {figures['slowest']:.2f} s; importing gRPC and Peewee alone"
        f" {figures['imports_alone']:.2f} s). When idle, the server process has"
        f" {figures['idle_server_anonymous_mib']:.0f} MiB of anonymous memory and its worker process, with torch,"
        f" {figures['idle_worker_anonymous_mib']:.0f} MiB ({figures['idle_server_resident_mib']:.0f} and"
        f" {figures['idle_worker_resident_mib']:.0f} MiB resident); together they use"
        f" {cpu:.2f} s of CPU per minute. {figures['date']}."
    )


def growth(figures: Figures, _: Path) -> str:
    """Makes the tables of rounds, cohorts and calls."""
    rounds = figures["rounds"]
    server, worker, time = (
        rounds[name] for name in ("server_bytes_per_round", "worker_bytes_per_round", "us_per_round")
    )
    lines = [
        f"{rounds['rounds']:,} rounds of a tiny model with {rounds['participants']} participants,"
        f" {figures['database']}, {figures['date']}:",
        "",
        f"- memory growth per round, with its standard error: server {_error(server)} bytes, worker {_error(worker)}"
        " bytes",
        f"- the median round took {rounds['median_ms_early']:.1f} ms early and {rounds['median_ms_late']:.1f} ms late,"
        f" a ratio of {rounds['late_to_early']:.2f}; trend {_error(time)} us per round; CPU"
        f" {rounds['cpu_ms_early']:.1f} and {rounds['cpu_ms_late']:.1f} ms",
        f"- a stored round takes {rounds['database_bytes_per_round'] / 1000:.1f} kB of database and"
        f" {rounds['files_per_round']:g} files",
        "",
        "| participants of a round | server's CPU per update |",
        "|--:|--:|",
    ]
    lines += [f"| {one['participants']:,} | {one['server_cpu_ms']:.2f} ms |" for one in figures["cohorts"]]
    events = figures["history"]["events"]
    lines += [
        "",
        f"Calls about a training with 1,000 participants and {events['wide']:,} events, one with"
        f" {events['long']:,} events in 1,000 rounds, and a new one:",
        "",
        "| call | 1,000 participants | 1,000 rounds | new |",
        "|---|--:|--:|--:|",
    ]
    for call, timed in figures["history"]["timed"].items():
        cells = [f"{timed[kind]['median_ms']:.1f} ms ({timed[kind]['ratio']:.2f})" for kind in ("wide", "long")]
        lines.append(f"| {call} | {' | '.join(cells)} | {timed['fresh']['median_ms']:.1f} ms |")
    lines += ["", "Medians; in parentheses the ratio to the same call about the new training."]
    return "\n".join(lines)


def _cpu(shape: Figures) -> str:
    theirs = shape.get("subscribers_cpu_a_delivery_us")
    return f"{shape['cpu_a_delivery_us']} us" + ("" if theirs is None else f", {theirs} us")


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _error(slope: Figures) -> str:
    return f"{slope['slope']:.1f} ± {slope['standard_error']:.1f}"
