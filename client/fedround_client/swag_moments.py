"""Moments of weights, which participants send in a SWAG round (Maddox et al., NeurIPS 2019)."""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import numpy as np

from fedround_client.tensor_types import StateDict, TensorError
from fedround_client.tensors import float64_arrays

Arrays: TypeAlias = dict[str, np.ndarray[Any, np.dtype[Any]]]


class Moments:
    """Collects weights during training, and computes the update of a SWAG round from them.

    def swag(model, round):
        moments = Moments(round.swag_rank)
        for _ in range(20):
            train_an_epoch(model)
            moments.add(model)
        return moments.update(), num_examples
    """

    def __init__(self, rank: int = 0) -> None:
        """Creates a collector without weights.

        Args:
            rank: How many deviations to send: the round's swag_rank.
        """
        self._rank = rank
        self._count = 0
        # Sums instead of running means: in float64 the sums of float32 weights and of their squares are nearly exact.
        self._sums: Arrays = {}
        self._squares: Arrays = {}
        self._deviations: deque[Arrays] = deque(maxlen=rank)

    def add(self, weights: StateDict) -> None:
        """Adds the current weights, for example after each epoch. Integer and complex tensors are ignored.

        Raises:
            TensorError: A value is not a tensor, or names or shapes differ from those added before.
        """
        values = float64_arrays(weights)
        if not self._count:
            self._sums = {name: np.zeros_like(value) for name, value in values.items()}
            self._squares = {name: np.zeros_like(value) for name, value in values.items()}
        if _shapes(values) != _shapes(self._sums):
            raise TensorError("These weights have other names or shapes than those that were added before.")
        self._count += 1
        for name, value in values.items():
            self._sums[name] += value
            self._squares[name] += value * value
        if self._rank:
            mean = self._mean(self._sums)
            self._deviations.append({name: np.asarray(values[name] - mean[name], np.float32) for name in values})

    def update(self) -> Arrays:
        """Returns the tensors of the update.

        Returns:
            mean/NAME and second/NAME: the means of the weights and of their squares, in float64. deviation/K/NAME: the
            last `rank` deviations, each from the mean of the weights up to then, in float32.

        Raises:
            ValueError: Fewer weights were added than the rank needs.
        """
        minimum = max(self._rank, 1)
        if self._count < minimum:
            raise ValueError(
                f"Moments of rank {self._rank} need the weights at least {minimum} times; they were added"
                f" {self._count} times."
            )
        tensors = {f"mean/{name}": mean for name, mean in self._mean(self._sums).items()}
        tensors |= {f"second/{name}": mean for name, mean in self._mean(self._squares).items()}
        for column, deviation in enumerate(self._deviations):
            tensors |= {f"deviation/{column}/{name}": value for name, value in deviation.items()}
        return tensors

    def _mean(self, sums: Arrays) -> Arrays:
        return {name: np.asarray(total / self._count) for name, total in sums.items()}


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
