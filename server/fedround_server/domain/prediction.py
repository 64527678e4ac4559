"""Inputs and outputs of predictions."""

from dataclasses import dataclass

from fedround_server.domain.model import Dtype


@dataclass(frozen=True, slots=True)
class Array:
    """A dense tensor, with its elements in row-major order, little-endian."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result of a prediction; all arrays are F32.

    Attributes:
        mean: Mean over the forward passes, of shape (inputs, ...).
        spread: Variance and standard deviation over the passes, of the same shape; None with a single pass.
        entropies: Predictive entropy, expected entropy and mutual information in nats, of that shape without its last
            dimension; None without softmax.
        samples: Number of passes.
    """

    mean: Array
    spread: tuple[Array, Array] | None
    entropies: tuple[Array, Array, Array] | None
    samples: int
