"""The sections on saving bytes and on the SDK's memory."""

from pathlib import Path
from typing import Any

from peers.systems import SIMULATORS

Figures = dict[str, Any]


def saving(figures: Figures, _: Path) -> str:
    """Makes the tables of compression and of the precisions of updates."""
    lines = [
        f"Chunks of {figures['chunk_bytes'] // 1024} KiB, one core, {figures['date']}: bytes saved, and the rate of"
        " compression.",
        "",
    ]
    packers = sorted({packer for found in figures["compression"].values() for packer in found})
    lines += [f"| numbers | {' | '.join(packers)} |", f"|---|{'--:|' * len(packers)}"]
    for numbers, found in figures["compression"].items():
        cells = [
            f"{found[packer]['saved_percent']:.1f} %, {found[packer]['pack_mb_s']:,} MB/s" if packer in found else ""
            for packer in packers
        ]
        lines.append(f"| {numbers} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{figures['clients']} participants of the SDK with a model of {figures['model_mib']} MiB, and the"
        " accuracies of the demo's network after training with each precision:",
        "",
        "| update precision | size of an update | encoding, one core | time of a round | server's CPU per round"
        " | accuracies |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, found in figures["update_precision"].items():
        accuracies = ", ".join(f"{one:.3f}" for one in found["accuracies"])
        rates = figures.get("encoding_mb_s", {})
        encoding = f"{rates[name]:,} MB/s" if name in rates else ""
        lines.append(
            f"| {name} | {found['update_mb']:.1f} MB | {encoding} | {found['round_seconds']:.2f} s"
            f" | {found['server_cpu_seconds']:.2f} s | {accuracies} |"
        )
    return "\n".join(lines)


def sdk(figures: Figures, _: Path) -> str:
    """Makes the table of memory."""
    lines = [
        f"Peak anonymous memory of a client process with a model of {figures['model_mb']:,.0f} MB, above what it had"
        f" before, including the model itself; {figures['date']}.",
        "",
        "| operation | memory | multiple of the model's size |",
        "|---|--:|--:|",
    ]
    for way, found in figures["ways"].items():
        lines.append(f"| {way} | {found['peak_above_base_mb']:,.0f} MB | {found['ratio']:.2f} |")
    return "\n".join(lines)


def simulation(figures: Figures, _: Path) -> str:
    """Makes the table of simulations."""
    work = figures["work"]
    lines = [
        f"{work['clients']:,} clients, of which {work['per_round']} train in each of {work['rounds']} rounds, in"
        f" {work['workers']} processes; median of {figures['repeats']} runs; {figures['date']}, load"
        f" {figures['machine']['load']}.",
        "",
        "| simulator | time | fastest and slowest run | CPU | memory |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, found in figures["systems"].items():
        label = f"{SIMULATORS[name].label} {found['version']}"
        lines.append(
            f"| {label if SIMULATORS[name].is_peer else f'**{label}**'} | {found['seconds']:.1f} s"
            f" | {found['fastest']:.1f} to {found['slowest']:.1f} s | {found['cpu']:.0f} s | {found['peak_mb']:,} MB |"
        )
    missing = [system.label for name, system in SIMULATORS.items() if name not in figures["systems"]]
    lines += [f"\nNot measured, since it is not installed: {label}." for label in missing]
    return "\n".join(lines)
