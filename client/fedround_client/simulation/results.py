"""The results of a simulation as files: numbers as JSON, metrics as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fedround_client.simulation.history import RoundRecord

if TYPE_CHECKING:
    from fedround_client.simulation.run import Simulation

REPORT, PLOT = "report.json", "metrics.png"
# From the palette of Okabe and Ito, which is distinct with every kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MAX_PANELS = 6


def write_results(result: Simulation, folder: Path, *, clients: int, workers: int, seed: int) -> None:
    """Writes report.json and, if matplotlib is installed and there are metrics, metrics.png.

    Args:
        result: The result.
        folder: An existing folder.
        clients: The number of clients.
        workers: The number of workers.
        seed: The seed.
    """
    report = {
        "clients": clients,
        "workers": workers,
        "seed": seed,
        "seconds": round(result.seconds, 2),
        "model_version": result.training.model_version,
        "model_sha256": result.model_sha256,
        "rounds": [asdict(record) for record in result.rounds],
        "failures": [asdict(failure) for failure in result.failures],
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    (folder / PLOT).unlink(missing_ok=True)
    curves = metric_curves(result.rounds)
    if curves and can_draw():
        _draw(curves, folder / PLOT)


def can_draw() -> bool:
    """Returns whether plots can be drawn here."""
    return find_spec("matplotlib") is not None


def metric_curves(rounds: Sequence[RoundRecord]) -> dict[str, list[tuple[int, float]]]:
    """Returns the values of each metric with the version of the model that they belong to.

    A metric that rides on updates belongs to the version that the updates make. If evaluations report one of the same
    name, that of the updates is called "NAME (train)".
    """
    evaluated = {name for record in rounds if record.kind == "EVALUATE" for name in record.metrics}
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in rounds:
        for name, value in record.metrics.items():
            label = f"{name} (train)" if record.kind != "EVALUATE" and name in evaluated else name
            curves.setdefault(label, []).append((record.model_version, value))
    return dict(sorted(curves.items()))


def _draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draws the curves as a PNG, one below the other."""
    # Takes a second to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = list(curves.items())[:MAX_PANELS]
    figure = Figure(figsize=(9, 1 + 2.2 * len(shown)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, points), colour in zip(panels, shown, COLOURS, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", markersize=4)
        axes.set_title(name, loc="left", weight="bold")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E5E5E5")
    panels[-1].set_xlabel("version of the model")
    figure.savefig(path)
