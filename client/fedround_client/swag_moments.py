"""Moments of weights, which are what participants send in a SWAG round (Maddox et al., NeurIPS 2019)."""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import numpy as np

from fedround_client.tensors import StateDict, TensorError, floating

Arrays: TypeAlias = dict[str, np.ndarray[Any, np.dtype[Any]]]


class Moments:
    """Gathers weights along a training, and makes the update of a SWAG round of them.

    def swag(model, round):
        moments = Moments(round.swag_rank)
        for _ in range(20):
            train_an_epoch(model)
            moments.add(model)
        return moments.update(), num_examples
    """

    def __init__(self, rank: int = 0) -> None:
        """Begins with no weights.

        Args:
            rank: How many deviations to send: the round's swag_rank.
        """
        self._rank = rank
        self._count = 0
        # Sums, not running means: in float64 the sum of float32 weights, and that of their squares, is all but exact.
        self._sums: Arrays = {}
        self._squares: Arrays = {}
        self._deviations: deque[Arrays] = deque(maxlen=rank)

    def add(self, weights: StateDict) -> None:
        """Takes in the weights as they are now, say after each epoch; integer tensors are left out.

        Raises:
            TensorError: Something in it is no tensor, or the tensors are not those of before.
        """
        values = floating(weights)
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
        """Makes the tensors of the update.

        Returns:
            mean/NAME and second/NAME, the means of the weights and of their squares in float64; and deviation/K/NAME,
            the last `rank` deviations from the mean of their moment in float32.

        Raises:
            ValueError: Too few weights were added.
        """
        least = max(self._rank, 1)
        if self._count < least:
            raise ValueError(f"Moments of rank {self._rank} take the weights {least} times; they came {self._count}.")
        found = {f"mean/{name}": mean for name, mean in self._mean(self._sums).items()}
        found |= {f"second/{name}": mean for name, mean in self._mean(self._squares).items()}
        for column, deviation in enumerate(self._deviations):
            found |= {f"deviation/{column}/{name}": value for name, value in deviation.items()}
        return found

    def _mean(self, sums: Arrays) -> Arrays:
        return {name: np.asarray(total / self._count) for name, total in sums.items()}


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
