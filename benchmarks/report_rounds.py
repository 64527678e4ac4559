"""The section on rounds: a table and a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from disk import told
from peers.systems import SYSTEMS
from rounds import LAYERS

PICTURE = "performance-rounds.png"
BLUE, GREY, INK, PALE = "#1f5fbf", "#5b6169", "#24292f", "#e3e6ea"

Figures = dict[str, Any]
# Height, system, value, and what is written next to it.
Point = tuple[float, str, float, str]


def rounds(figures: Figures, folder: Path) -> str:
    """Makes the table, and draws the picture into the folder."""
    draw(figures, folder / PICTURE)
    machine = figures["machine"]
    lines = [
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']:g} GiB, {machine['system']}, Python"
        f" {machine['python']}; {figures['date']}. {figures['rounds']} rounds a run, {figures['alternations']} runs of"
        " each system in turn, one of a peer that cannot be the fastest; medians, with the fastest and the slowest"
        " round in parentheses, or the smallest and the largest ratio of a turn.",
        *([f"Disk: {told(figures['disk'])}."] if "disk" in figures else []),
        "",
        f"![Seconds per round, and memory of the server]({PICTURE})",
        "",
        "| workload | system | seconds per round | relative speed | server's memory | server's CPU | clients' CPU |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for result in figures["workloads"].values():
        lines += [_row(result, name, system) for name, system in result["systems"].items()]
    lines += [
        "",
        "Relative speed is the speed divided by that of the fastest peer. Memory is the peak of the anonymous memory of"
        " all server processes together. CPU is the CPU time of a round, summed over processes.",
    ]
    lines += [f"\n{line}" for line in _absent(figures)]
    return "\n".join(lines)


def _row(result: Figures, name: str, system: Figures) -> str:
    speed = system.get("speed_of_fastest_peer")
    cells = [
        workload_name(result),
        f"{SYSTEMS[name].label} {system['version']}".strip(),
        f"{system['seconds']:.2f} ({system['fastest']:.2f} to {system['slowest']:.2f})",
        "" if speed is None else f"{speed:.2f}{_spread(system.get('speed_by_turn', []))}",
        f"{system['server_peak_anonymous_bytes'] / 1e6:,.0f} MB",
        f"{system['server_cpu_seconds']:.2f} s",
        f"{system['clients_cpu_seconds']:.2f} s",
    ]
    if SYSTEMS[name].is_limit:
        cells[1] = f"*{cells[1]}*"
    elif not SYSTEMS[name].is_peer:
        cells[1:4] = [f"**{cell}**" if cell else "" for cell in cells[1:4]]
    return f"| {' | '.join(cells)} |"


def workload_name(result: Figures) -> str:
    """Returns how many clients have a model of which size."""
    many = "" if result["layers"] == LAYERS else f" in {result['layers']} tensors"
    return f"{result['clients']} x {result['megabytes']:g} MB{many}"


def _spread(ratios: list[float]) -> str:
    return f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""


def _absent(figures: Figures) -> list[str]:
    return [
        f"{SYSTEMS[name].label} has no figure at {workload_name(result)}: {why}"
        for result in figures["workloads"].values()
        for name, why in result["absent"].items()
    ]


def draw(figures: Figures, path: Path) -> None:
    """Draws time and memory of all systems, workload by workload, on scales on which equal steps are equal factors."""
    titles: list[tuple[float, str]] = []
    names: list[tuple[float, str]] = []
    seconds: list[Point] = []
    memory: list[Point] = []
    y = 0.0
    for result in figures["workloads"].values():
        titles.append((y, workload_name(result).replace(" x ", " clients x ")))
        own = result["systems"].get("fedround")
        for name, system in result["systems"].items():
            y += 1
            names.append((y, name))
            ratio = f"   {_short(system['seconds'] / own['seconds'])}x" if own and SYSTEMS[name].is_peer else ""
            seconds.append((y, name, system["seconds"], f"{system['seconds']:.2f}{ratio}"))
            megabytes = system["server_peak_anonymous_bytes"] / 1e6
            memory.append((y, name, megabytes, f"{megabytes:,.0f}"))
        y += 1.6
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        picture, (left, right) = plt.subplots(1, 2, figsize=(11, 0.36 * y + 1.1), sharey=True, layout="constrained")
        _panel(left, "Seconds a round, and times fedround's", seconds)
        _panel(right, "Memory of the server, MB", memory)
        left.set_yticks([at for at, _ in names], [SYSTEMS[name].label for _, name in names])
        for label, (_, name) in zip(left.get_yticklabels(), names, strict=True):
            label.set_color(_color(name))
        for at, title in titles:
            left.text(0, at, title, transform=left.get_yaxis_transform(), weight="bold", va="center")
        left.set_ylim(y - 0.8, -0.7)
        picture.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
        plt.close(picture)


def _panel(axes: Axes, title: str, points: list[Point]) -> None:
    axes.set_xscale("log")
    values = [value for _, _, value, _ in points]
    low, high = min(values) / 1.6, max(values) * 3
    axes.set_xlim(low, high)
    axes.set_title(title, loc="left", fontsize=11, weight="bold", pad=10)
    for y, name, value, text in points:
        color = _color(name)
        axes.plot([low, value], [y, y], color=color, alpha=0.3, linewidth=2, solid_capstyle="butt")
        axes.plot(value, y, "o", color=color, markersize=7)
        axes.annotate(text, (value, y), (8, -1), textcoords="offset points", va="center", color=color)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color=PALE)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)


def _color(name: str) -> str:
    if SYSTEMS[name].is_limit:
        return INK
    return GREY if SYSTEMS[name].is_peer else BLUE


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
