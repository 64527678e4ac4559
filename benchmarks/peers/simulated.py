"""What every simulator is given to do: a small network, and clients that train it on data of their own.

A simulator is a module of this folder that is run as `python -m peers.NAME CLIENTS PER_ROUND ROUNDS WORKERS`, and whose
last line of output is what `tell` prints. This file needs nothing but numpy.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Layers = list[np.ndarray[Any, np.dtype[np.float32]]]

INPUTS, HIDDEN, CLASSES = 784, 32, 10
EXAMPLES, BATCH = 64, 16
MARK = "RESULT "


@dataclass(frozen=True)
class Simulated:
    """A simulation.

    Attributes:
        clients: How many there are.
        per_round: How many of them train in each round.
        rounds: How many rounds there are.
        workers: How many processes the clients run in.
    """

    clients: int
    per_round: int
    rounds: int
    workers: int

    @classmethod
    def of(cls, words: Sequence[str]) -> "Simulated":
        """Reads it from words of a command line."""
        return cls(*map(int, words))


def initial_layers() -> Layers:
    """Returns two layers with their biases, 100 kB; the last array counts how often the model was trained."""
    rng = np.random.default_rng(0)
    shapes = ((INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    layers = [(rng.normal(size=shape) * 0.05).astype(np.float32) for shape in shapes]
    return [*layers, np.zeros(1, np.float32)]


@cache
def data_of(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs and labels of a client."""
    rng = np.random.default_rng(index)
    labels = rng.integers(0, CLASSES, EXAMPLES)
    return rng.normal(size=(EXAMPLES, INPUTS)).astype(np.float32) + labels[:, None] / CLASSES, labels


def train(layers: Layers, index: int) -> int:
    """Trains layers in place, one epoch of stochastic gradient descent; returns the number of examples."""
    x, y = data_of(index)
    w1, b1, w2, b2, count = layers
    for start in range(0, EXAMPLES, BATCH):
        inputs, labels = x[start : start + BATCH], y[start : start + BATCH]
        hidden = np.maximum(inputs @ w1 + b1, 0)
        scores = np.exp(hidden @ w2 + b2)
        error = (scores / scores.sum(axis=1, keepdims=True) - np.eye(CLASSES)[labels]) / BATCH
        back = (error @ w2.T) * (hidden > 0)
        w2 -= (0.1 * hidden.T @ error).astype(np.float32)
        b2 -= (0.1 * error.sum(axis=0)).astype(np.float32)
        w1 -= (0.1 * inputs.T @ back).astype(np.float32)
        b1 -= (0.1 * back.sum(axis=0)).astype(np.float32)
    count += 1
    return EXAMPLES


def tell(version: str, trained: Sequence[int], count: float) -> None:
    """Prints the result.

    Args:
        version: The version of the simulator.
        trained: How many clients trained in each round.
        count: What the last array of the final model says: how often it was trained.
    """
    sys.stdout.write(f"\n{MARK}{json.dumps({'version': version, 'trained': list(trained), 'count': float(count)})}\n")
    sys.stdout.flush()
