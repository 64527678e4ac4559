"""Predictions: tensors in, tensors out."""

from dataclasses import dataclass

from fedround_server.domain.model import Dtype


@dataclass(frozen=True, slots=True)
class Array:
    """A dense tensor as plain data.

    Attributes:
        data: The elements in row-major order, little-endian.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted, all F32.

    Attributes:
        mean: Mean of the passes, shape (inputs, ...).
        spread: variance and std, of the same shape; None with one pass.
        entropies: predictive_entropy, expected_entropy and mutual_information in nats, the last dimension gone; None
            without softmax.
        samples: How many passes.
    """

    mean: Array
    spread: tuple[Array, Array] | None
    entropies: tuple[Array, Array, Array] | None
    samples: int
