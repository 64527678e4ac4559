"""What the oracles of rules and of server optimizers have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedround_server.domain.aggregation import Aggregation
from unit.aggregating import Rounds, Sent

Vectors = np.ndarray
SIZE, ROUNDS = 400, 6
CLOSE = 1e-13
"""The largest difference from an oracle, relative to the largest number; both compute in float64."""


def norm(vector: np.ndarray) -> float:
    return float(np.sqrt((vector * vector).sum()))


def check(name: str, found: np.ndarray, expected: np.ndarray, record: Any) -> None:
    largest = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    record(name, largest)
    assert largest < CLOSE


def weighted_mean(differences: Vectors, sent: Sequence[Sent]) -> np.ndarray:
    parts = np.array([one.weight for one in sent]) / sum(one.weight for one in sent)
    return (parts[:, None] * differences).sum(axis=0)


def walk(folder: Path, aggregation: Aggregation, seed: int) -> tuple[np.ndarray, list[Vectors], list[list[Sent]]]:
    """Rounds whose updates are the round's model and given differences; returns each version."""
    rng = np.random.default_rng(seed)
    model, versions, differences, updates = rng.standard_normal(SIZE), [], [], []
    training = Rounds(folder, aggregation)
    for _ in range(ROUNDS):
        differences.append(0.3 * rng.standard_normal((5, SIZE)))
        updates.append(
            [Sent({"w": torch.tensor(model + one)}, n + 1, f"site {n}") for n, one in enumerate(differences[-1])]
        )
        model = training.aggregate({"w": torch.tensor(model)}, updates[-1])["w"].numpy()
        versions.append(model)
    start = np.random.default_rng(seed).standard_normal(SIZE)
    return np.array([start, *versions]), differences, updates
