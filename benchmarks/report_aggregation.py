"""The section of docs/performance.md about aggregation."""

from pathlib import Path
from typing import Any


def aggregation(figures: dict[str, Any], _: Path) -> str:
    """Returns its Markdown."""
    lines = [
        f"Updates of {figures['mb']:g} MB, 8 of them, {figures['many']} for Krum; medians of"
        f" {figures['repeats']} repeats, {figures['date']}, load {figures['machine']['load']}.",
        "",
        "| ratio | |",
        "|---|--:|",
        *(f"| {name} | {value:g} |" for name, value in figures["ratios"].items()),
        f"| reads of the updates, Krum | {figures['krum']['reads']:g} |",
        "",
        "| | time | CPU |",
        "|---|--:|--:|",
    ]
    for group in ("means", "columns", "krum"):
        for name, found in figures[group].items():
            if isinstance(found, dict):
                cpu = f"{found['cpu']:.3f} s" if "cpu" in found else ""
                lines.append(f"| {name} | {found['seconds']:.3f} s | {cpu} |")
    memory = ", ".join(f"{name} updates {value:g} MiB" for name, value in figures["memory"].items())
    commit = figures["commit"]
    lines += [
        "",
        f"Peak anonymous memory of a worker, with torch: {memory}.",
        "",
        f"From the answer to the last update of 1 MB until the event of the next round: {commit['milliseconds']:g} ms;"
        f" the engine alone, measured apart with one thread, {commit['engine_alone']:g} ms.",
    ]
    return "\n".join(lines)
