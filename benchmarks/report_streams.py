"""The sections on streams: what each part takes alone, what the streams reach, and what the server's CPU goes into."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from report_rounds import INK, PALE

PICTURE = "performance-profile.png"
COLORS = {
    "TCP (kernel)": "#1f5fbf",
    "gRPC": "#5b8fd9",
    "protobuf": "#9dbdec",
    "copies": "#c9dbf5",
    "CRC-32C": "#2a9d8f",
    "SHA-256": "#1b6b62",
    "NaN and Inf": "#8fd0c8",
    "write (kernel)": "#c7651b",
    "read (kernel)": "#e09a5f",
    "clearing memory (kernel)": "#b0303a",
    "waiting, waking (kernel)": "#d9b400",
    "Python": "#8957b5",
    "other": "#b9bec5",
}
NAMES = {
    "up": "one upload",
    "4 up": "four uploads at once",
    "down": "one download",
    "4 down": "four downloads at once",
}

Figures = dict[str, Any]


def streams(figures: Figures, _: Path) -> str:
    """Makes the tables."""
    lines = [
        f"Files of {figures['size_bytes'] / 2**20:.0f} MiB, {figures['date']}, load {figures['machine']['load']:g}.",
        "",
        "| stream | measured | attainable | share | CPU, all processes | cores busy |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, stream in figures["streams"].items():
        lines.append(
            f"| {NAMES[name]} | **{stream['rate'] / 1e9:.2f} GB/s** | {stream['allowed'] / 1e9:.2f} GB/s"
            f" | **{stream['share']:.0%}** | {stream['cpu']:.2f} ns a byte | {_busy(stream)} |"
        )
    lines += ["", "| part, measured alone | rate | CPU | cores busy |", "|---|--:|--:|--:|"]
    for name, part in figures["parts"].items():
        lines.append(f"| {name} | {part['rate'] / 1e9:.2f} GB/s | {part['cpu']:.2f} ns a byte | {_busy(part)} |")
    lines += ["", f"Peak anonymous memory of the server during this: {figures['peak_anonymous_mib']:.0f} MiB."]
    return "\n".join(lines)


def _busy(limit: Figures) -> str:
    return f"{limit['rate'] / 1e9 * limit['cpu']:.2f}"


def profile(figures: Figures, folder: Path) -> str:
    """Draws what the server's CPU goes into."""
    costs: dict[str, dict[str, float]] = figures["ns_per_byte"]
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        picture, axes = plt.subplots(figsize=(11, 3.4), layout="constrained")
        for y, what in enumerate(costs):
            left = 0.0
            for name, color in COLORS.items():
                width = costs[what].get(name, 0.0)
                if width:
                    axes.barh(y, width, left=left, color=color, edgecolor="white", height=0.6)
                if width > 0.06:
                    axes.text(
                        left + width / 2, y, f"{width:.2f}", ha="center", va="center", fontsize=8, color=_ink(color)
                    )
                left += width
            axes.text(left + 0.02, y, f"{left:.2f}", va="center", weight="bold")
        axes.set_yticks(range(len(costs)), [NAMES[what] for what in costs])
        axes.set_ylim(len(costs) - 0.5, -0.5)
        axes.set_title("The server's CPU, nanoseconds a byte", loc="left", fontsize=11, weight="bold", pad=10)
        axes.grid(axis="x", color=PALE)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=INK)
        axes.spines[:].set_visible(False)
        seen = [name for name in COLORS if any(name in one for one in costs.values())]
        handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[name]) for name in seen]
        picture.legend(handles, seen, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
        picture.savefig(folder / PICTURE, dpi=150, facecolor="white", metadata={"Software": None})
        plt.close(picture)
    return f"![What an upload and a download cost the server]({PICTURE})"


def _ink(background: str) -> str:
    """Returns the colour of text that can be read on another one."""
    red, green, blue = (int(background[start : start + 2], 16) for start in (1, 3, 5))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 128 else INK
