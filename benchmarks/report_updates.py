"""The sections on small updates: how many are accepted a second, what their parts take, and slow syncs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disk import told
from peers.systems import SYSTEMS
from report_rounds import workload_name

Figures = dict[str, Any]
VARIANTS = {
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "slow": "SQLite, slow syncs",
    "postgresql_slow": "PostgreSQL, slow syncs",
    "calls": "*the calls alone*",
}
BEFORE = "before_"
PROCESSES = ("server", "worker", "database", "clients")
WHOLE = {"one": "one after the other", "many": "{} at once"}


def updates(figures: Figures, _: Path) -> str:
    """Makes the table of accepted updates a second."""
    lines = [
        f"{figures['users']:,} users, updates of {figures['kilobytes']} kB, {figures['in_flight']} at once, clients in"
        f" {figures['processes']} processes; medians of {figures['turns']} turns of {figures['rounds']} rounds,"
        f" with the slowest and the fastest turn in parentheses; {figures['date']}, load"
        f" {figures['machine']['load']:g}. {_disk(figures)} A slow sync takes {figures['sync_ms']:g} ms longer.",
        "",
        "| server | accepted a second | with the commits of rounds | time to the receipt: p50, p99 | syncs per update"
        " | CPU per update: server | worker | database | clients |",
        f"|---|{'--:|' * 8}",
    ]
    for name, one in figures["variants"].items():
        title = VARIANTS[name.removeprefix(BEFORE)] + (", before" if name.startswith(BEFORE) else "")
        cpu = [f"{one['cpu_ms'][who]:.2f} ms" if who in one["cpu_ms"] else "" for who in PROCESSES]
        rate = f"{one['updates_per_second']:,.0f} ({min(one['each']):,.0f} to {max(one['each']):,.0f})"
        cells = [
            title,
            f"**{rate}**",
            f"{one['updates_per_second_with_commits']:,.0f}",
            f"{one['answer_ms_p50']:.0f} ms, {one['answer_ms_p99']:.0f} ms",
            f"{one['syncs_per_update']:.2f}" if "syncs_per_update" in one else "",
            *cpu,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"\n{VARIANTS[name.removeprefix(BEFORE)]} has no figures: {why}." for name, why in figures["absent"].items()
    ]
    return "\n".join(lines)


def update_parts(figures: Figures, _: Path) -> str:
    """Makes the tables of the parts of an update."""
    sizes = figures["sizes"]
    lines = [
        f"{figures['date']}, load {figures['machine']['load']:g}. {_disk(figures)}",
        "",
        f"| part, measured alone | {' | '.join(f'{size}: time | CPU' for size in sizes)} |",
        f"|---|{'--:|--:|' * len(sizes)}",
    ]
    for part in next(iter(sizes.values()))["parts"]:
        cells = (f"{_ms(one['parts'][part]['ms'])} | {_ms(one['parts'][part]['cpu_ms'])}" for one in sizes.values())
        lines.append(f"| {part} | {' | '.join(cells)} |")
    lines += [
        f"| the call: server | {' | '.join(_call(one['call'], 'server') for one in sizes.values())} |",
        f"| the call: client | {' | '.join(_call(one['call'], 'client') for one in sizes.values())} |",
        "",
        f"| a whole update | time | CPU: server | worker | client | statements | commits | syncs |\n|---|{'--:|' * 7}",
        *_wholes(figures),
    ]
    return "\n".join(lines)


def _wholes(figures: Figures) -> Iterator[str]:
    for size, one in figures["sizes"].items():
        for way, title in WHOLE.items():
            whole = one["whole"][way]
            counts = [f"{value:.1f}" for value in whole.get("counts", {}).values()] or ["", "", ""]
            cpu = [f"{whole[f'{who}_cpu_ms']:.2f} ms" for who in ("server", "worker", "client")]
            cells = [f"{size}, {title.format(figures['at_once'])}", f"{whole['ms']:.2f} ms", *cpu, *counts]
            yield f"| {' | '.join(cells)} |"


def rounds_slow_syncs(figures: Figures, _: Path) -> str:
    """Makes the table of rounds with slow syncs."""
    lines = [
        f"{figures['alternations']} runs of {figures['rounds']} rounds in turn, {figures['date']}, load"
        f" {figures['machine']['load']:g}. {_disk(figures)} A slow sync takes {figures['sync_ms']:g} ms longer.",
        "",
        "| workload | server | seconds per round | server's CPU |",
        "|---|---|--:|--:|",
    ]
    for result in figures["workloads"].values():
        for name, system in result["systems"].items():
            lines.append(
                f"| {workload_name(result)} | {SYSTEMS[name].label} | {system['seconds']:.2f}"
                f" ({system['fastest']:.2f} to {system['slowest']:.2f}) | {system['server_cpu_seconds']:.2f} s |"
            )
        lines += [f"\n{SYSTEMS[name].label} has no figure: {why}" for name, why in result["absent"].items()]
    return "\n".join(lines)


def growth_cohorts_postgresql(figures: Figures, _: Path) -> str:
    """Makes the table of the CPU time of an update on PostgreSQL."""
    lines = [
        f"The same on {figures['database']}, {figures['date']}, without the processes of the database:",
        "",
        "| participants of a round | server's CPU per update |",
        "|--:|--:|",
    ]
    lines += [f"| {one['participants']:,} | {one['server_cpu_ms']:.2f} ms |" for one in figures["cohorts"]]
    return "\n".join(lines)


def _disk(figures: Figures) -> str:
    return f"Disk: {told(figures['disk'])}."


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f} ms"


def _call(call: Figures, who: str) -> str:
    time = _ms(call["ms"]) if who == "server" else ""
    return f"{time} | {_ms(call[f'{who}_cpu_ms'])}"
