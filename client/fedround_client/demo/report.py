"""The results of the demo: numbers as JSON, curves as plots."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedround_client.demo.settings import Settings
from fedround_client.demo.uncertainty import METHOD, RotationResult

# From the palette of Okabe and Ito, which is distinct with every kind of colour blindness.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"
MAX_LABELS = 12
LABEL_GAP = 0.045
SHOWN_DIGITS = 3
HEADROOM = 1.35
"""Height of the axes, as a multiple of the highest curve: the legend lies above the curves."""


@dataclass(frozen=True)
class Outcome:
    """Accuracies on the held-out images. Each list goes from the untrained network to the end of the last round.

    Attributes:
        federated: Of the global model.
        alone: Of the network trained on one client's images, for each client.
        centralised: Of the network trained on all images in one place.
        images: Number of images of each client.
        model_id: UUID of the final model.
        model_sha256: SHA-256 of the final model's file, from the server.
        rotated: The uncertainty of the final model on rotated digits.
        rounds_left_out: In how many rounds the work of each client was left out, since it came too late.
    """

    federated: list[float]
    alone: list[list[float]]
    centralised: list[float]
    images: list[int]
    model_id: str
    model_sha256: str
    rotated: RotationResult
    rounds_left_out: list[int] = field(default_factory=list)


def write_json(outcome: Outcome, settings: Settings, seconds: float, path: Path) -> None:
    """Writes the numbers.

    Args:
        outcome: The results.
        settings: The options of the demo.
        seconds: Duration of the demo.
        path: The file to write.
    """
    report = {
        "final_accuracy": outcome.federated[-1],
        "rounds": settings.rounds,
        "clients": settings.clients,
        "local_accuracies": [curve[-1] for curve in outcome.alone],
        "centralised_accuracy": outcome.centralised[-1],
        "seconds": round(seconds, 1),
        "model_sha256": outcome.model_sha256,
        "accuracy_by_round": outcome.federated,
        "local_accuracy_by_round": outcome.alone,
        "centralised_accuracy_by_round": outcome.centralised,
        "uncertainty": {
            "method": "mc_dropout",
            "samples": METHOD.samples,
            "images": len(outcome.rotated.examples[0]),
            "degrees": list(outcome.rotated.degrees),
            "accuracy": outcome.rotated.accuracy,
            "predictive_entropy": outcome.rotated.predictive_entropy,
            "expected_entropy": outcome.rotated.expected_entropy,
            "mutual_information": outcome.rotated.mutual_information,
        },
        "images": outcome.images,
        "rounds_left_out": outcome.rounds_left_out,
        "alpha": settings.alpha,
        "local_epochs": settings.local_epochs,
        "seed": settings.seed,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def draw(outcome: Outcome, settings: Settings, path: Path) -> None:
    """Draws the accuracies over the rounds as a PNG."""
    # Takes a second to import, and participants do not need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in outcome.alone:
        axes.plot(curve, color=GREY, linewidth=1)
    axes.plot(outcome.centralised, color=VERMILION, linewidth=2, linestyle="--")
    axes.plot(outcome.federated, color=BLUE, linewidth=2.5, marker="o", markersize=5, clip_on=False)
    labels = _labels(outcome)
    for label, height in zip(labels, spread([label.accuracy for label in labels], LABEL_GAP), strict=True):
        axes.annotate(
            f"{label.accuracy:.1%}  {label.text}",
            xy=(settings.rounds, label.accuracy),
            xytext=(settings.rounds * 1.03, height),
            color=label.colour,
            weight="normal" if label.colour == GREY else "bold",
            verticalalignment="center",
            annotation_clip=False,
        )

    axes.set_title(f"{settings.clients} clients learn handwritten digits", loc="left", weight="bold")
    axes.set_xlabel(f"rounds of {settings.local_epochs} epochs each")
    axes.set_ylabel("accuracy on held-out images")
    axes.set_xlim(0, settings.rounds)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5")
    figure.savefig(path)


def draw_rotated(rotated: RotationResult, path: Path) -> None:
    """Draws the entropies and the accuracy over the angle as a PNG, with some of the digits at each angle."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    strip, axes = figure.subplots(2, 1, height_ratios=(1, 3))
    gap = ((1, 1), (1, 1))
    rows = [
        np.concatenate([np.pad(images[number, 0], gap) for images in rotated.examples], axis=1)
        for number in range(SHOWN_DIGITS)
    ]
    half = (rotated.degrees[1] - rotated.degrees[0]) / 2
    left, right = rotated.degrees[0] - half, rotated.degrees[-1] + half
    strip.imshow(np.concatenate(rows), cmap="Greys", aspect="auto", extent=(left, right, 0, SHOWN_DIGITS))
    strip.set_axis_off()
    strip.set_title("The model is certain of upright digits, and less so of rotated ones", loc="left", weight="bold")
    axes.stackplot(
        rotated.degrees,
        rotated.expected_entropy,
        rotated.mutual_information,
        colors=("#9FC8E0", "#F0B48A"),
        labels=("of the data (expected entropy)", "of the model (mutual information)"),
    )
    whole = {"color": BLUE, "linewidth": 2, "marker": "o", "label": "total (predictive entropy)"}
    axes.plot(rotated.degrees, rotated.predictive_entropy, **whole)
    axes.set_xlabel("rotation in degrees")
    axes.set_ylabel("uncertainty in nats")
    axes.set_xlim(left, right)
    axes.set_xticks(rotated.degrees)
    axes.set_ylim(0, HEADROOM * max(rotated.predictive_entropy))
    accuracy = axes.twinx()
    accuracy.plot(rotated.degrees, rotated.accuracy, color=VERMILION, linewidth=2, linestyle="--", marker="s")
    accuracy.set_ylabel("accuracy", color=VERMILION)
    accuracy.set_ylim(0, HEADROOM)
    accuracy.set_yticks((0, 0.25, 0.5, 0.75, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    accuracy.spines["top"].set_visible(False)
    lines = [*accuracy.lines, *axes.get_legend_handles_labels()[0][::-1]]
    labels = ["accuracy", *axes.get_legend_handles_labels()[1][::-1]]
    axes.legend(lines, labels, frameon=False, loc="upper center", ncols=2)
    axes.spines["top"].set_visible(False)
    figure.savefig(path)


@dataclass(frozen=True)
class _Label:
    accuracy: float
    text: str
    colour: str


def _labels(outcome: Outcome) -> list[_Label]:
    """Returns the labels of the curves, sorted by the end of the curve."""
    alone = sorted(
        (_Label(curve[-1], f"client {number} alone", GREY) for number, curve in enumerate(outcome.alone, start=1)),
        key=lambda label: label.accuracy,
    )
    if len(alone) > MAX_LABELS:
        alone = [alone[0], alone[-1]]
    compared = [
        _Label(outcome.centralised[-1], "all data in one place", VERMILION),
        _Label(outcome.federated[-1], "together, federated", BLUE),
    ]
    return sorted(alone + compared, key=lambda label: label.accuracy)


def spread(heights: list[float], gap: float) -> list[float]:
    """Moves ascending heights apart, so that labels do not overlap and none is above 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = 1.0
    for position in reversed(range(len(moved))):
        moved[position] = min(moved[position], ceiling)
        ceiling = moved[position] - gap
    return moved
