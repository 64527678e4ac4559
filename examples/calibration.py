"""Calibration of predicted probabilities: expected calibration error and reliability diagram.

    fedround predict MODEL_ID inputs.npy --uncertainty mc-dropout --softmax --output predictions.npz
    python examples/calibration.py predictions.npz labels.npy reliability.png

(Guo et al., On Calibration of Modern Neural Networks, ICML 2017)
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Reliability:
    """Predictions by confidence, in bins of equal width.

    Attributes:
        confidence: Mean confidence of each bin, shape (bins,); NaN for an empty one.
        accuracy: Fraction of correct predictions of each bin, shape (bins,); NaN for an empty one.
        count: Predictions in each bin, shape (bins,).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean difference between confidence and accuracy over all predictions: 0 is calibrated, 1 is the worst."""
        return float(np.nansum(np.abs(self.confidence - self.accuracy) * self.count) / self.count.sum())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Compares confidence with accuracy.

    Args:
        probabilities: Shape (predictions, classes); rows add up to one.
        labels: The correct classes, shape (predictions,), integers.
        bins: Number of bins.

    Raises:
        ValueError: The shapes do not match, or the rows are not probabilities.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(f"probabilities {probabilities.shape} and labels {labels.shape} do not match")
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError("the rows do not add up to one: predict with softmax")
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # A confidence of exactly one belongs to the last bin.
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(np.bincount(index, confidence, bins) / count, np.bincount(index, correct, bins) / count, count)


def draw(found: Reliability, path: Path) -> None:
    """Draws a reliability diagram: bars below the diagonal are overconfident predictions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bins = len(found.count)
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    edges = np.arange(bins) / bins
    axes.bar(edges, np.nan_to_num(found.accuracy), 1 / bins, align="edge", color="#0072b2", edgecolor="white")
    axes.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1)
    axes.set_title(f"expected calibration error {found.expected_calibration_error:.3f}", loc="left", weight="bold")
    axes.set_xlabel("confidence")
    axes.set_ylabel("fraction of correct predictions")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Reads predictions and labels, and draws the diagram."""
    parser = argparse.ArgumentParser(description="Expected calibration error and reliability diagram.")
    parser.add_argument("predictions", type=Path, help="npz file of `fedround predict --output`")
    parser.add_argument("labels", type=Path, help="npy file with the correct class of each input")
    parser.add_argument("diagram", type=Path, help="png file to write")
    parser.add_argument("--bins", type=int, default=15, help="number of bins")
    chosen = parser.parse_args()
    with np.load(chosen.predictions, allow_pickle=False) as arrays:
        found = reliability(arrays["mean"], np.load(chosen.labels, allow_pickle=False), chosen.bins)
    draw(found, chosen.diagram)
    print(f"expected calibration error: {found.expected_calibration_error:.4f}")


if __name__ == "__main__":
    main()
