"""What came out: the numbers as JSON, the curves as a plot."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedround_client.demo.settings import Settings
from fedround_client.demo.uncertainty import METHOD, Turned

# Okabe and Ito's palette, which stays distinct with every kind of colour blindness.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"
MAX_LABELS = 12
LABEL_GAP = 0.045
SHOWN_DIGITS = 3


@dataclass(frozen=True)
class Outcome:
    """Accuracies on the held-out images, each list from the untrained network to the end of the last round.

    Attributes:
        federated: Of the global model.
        alone: Of the network trained on one client's images, for each client.
        centralised: Of the network trained on all images in one place.
        images: How many images each client has.
        model_id: UUID of the final model.
        model_sha256: SHA-256 of the final model's file, as the server says.
        turned: How sure the final model is of digits that are turned.
    """

    federated: list[float]
    alone: list[list[float]]
    centralised: list[float]
    images: list[int]
    model_id: str
    model_sha256: str
    turned: Turned


def write_json(outcome: Outcome, settings: Settings, seconds: float, path: Path) -> None:
    """Writes the numbers.

    Args:
        outcome: What came out.
        settings: How it was made.
        seconds: How long it took.
        path: The file.
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
        "uncertainty": {
            "method": "mc_dropout",
            "samples": METHOD.samples,
            "images": len(outcome.turned.examples[0]),
            "degrees": list(outcome.turned.degrees),
            "accuracy": outcome.turned.accuracy,
            "predictive_entropy": outcome.turned.predictive_entropy,
            "expected_entropy": outcome.turned.expected_entropy,
            "mutual_information": outcome.turned.mutual_information,
        },
        "images": outcome.images,
        "alpha": settings.alpha,
        "local_epochs": settings.local_epochs,
        "seed": settings.seed,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def draw(outcome: Outcome, settings: Settings, path: Path) -> None:
    """Draws the accuracies over the rounds as a PNG."""
    # Takes a second, and no participant draws.
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
    axes.set_xlabel(f"rounds, each of {settings.local_epochs} passes over the images")
    axes.set_ylabel("accuracy on held-out images")
    axes.set_xlim(0, settings.rounds)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5")
    figure.savefig(path)


def draw_turned(turned: Turned, path: Path) -> None:
    """Draws the entropies over the angle as a PNG, with some of the digits at each angle."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    strip, axes = figure.subplots(2, 1, height_ratios=(1, 3))
    gap = ((1, 1), (1, 1))
    rows = [
        np.concatenate([np.pad(images[number, 0], gap) for images in turned.examples], axis=1)
        for number in range(SHOWN_DIGITS)
    ]
    half = (turned.degrees[1] - turned.degrees[0]) / 2
    left, right = turned.degrees[0] - half, turned.degrees[-1] + half
    strip.imshow(np.concatenate(rows), cmap="Greys", aspect="auto", extent=(left, right, 0, SHOWN_DIGITS))
    strip.set_axis_off()
    strip.set_title("The model is sure of upright digits, and less so of turned ones", loc="left", weight="bold")
    axes.stackplot(
        turned.degrees,
        turned.expected_entropy,
        turned.mutual_information,
        colors=("#9FC8E0", "#F0B48A"),
        labels=("in the image (expected entropy)", "in the model (mutual information)"),
    )
    whole = {"color": BLUE, "linewidth": 2, "marker": "o", "label": "both (predictive entropy)"}
    axes.plot(turned.degrees, turned.predictive_entropy, **whole)
    axes.set_xlabel("turned by, in degrees")
    axes.set_ylabel("uncertainty in nats")
    axes.set_xlim(left, right)
    axes.set_xticks(turned.degrees)
    axes.set_ylim(0, 1.3 * max(turned.predictive_entropy))
    axes.legend(frameon=False, loc="upper right", reverse=True, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


@dataclass(frozen=True)
class _Label:
    accuracy: float
    text: str
    colour: str


def _labels(outcome: Outcome) -> list[_Label]:
    """Names for the curves, from the lowest end to the highest."""
    alone = sorted(
        (_Label(curve[-1], f"client {number} alone", GREY) for number, curve in enumerate(outcome.alone, start=1)),
        key=lambda label: label.accuracy,
    )
    if len(alone) > MAX_LABELS:
        alone = [alone[0], alone[-1]]
    joint = [
        _Label(outcome.centralised[-1], "all data in one place", VERMILION),
        _Label(outcome.federated[-1], "together, federated", BLUE),
    ]
    return sorted(alone + joint, key=lambda label: label.accuracy)


def spread(heights: list[float], gap: float) -> list[float]:
    """Moves ascending heights apart, so that labels at them do not overlap, and none is above 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = 1.0
    for position in reversed(range(len(moved))):
        moved[position] = min(moved[position], ceiling)
        ceiling = moved[position] - gap
    return moved
