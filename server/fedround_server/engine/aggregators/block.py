"""What an aggregator is, and its input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """The same elements of every update: some of one tensor, or of several adjacent ones.

    Attributes:
        updates: One tensor per update, each of shape (elements,) in the model's floating dtype, or in float64 where it
            is the sum of the model and a difference; in canonical order. Not to be written to. Made on access: code
            that goes through them one by one holds one at a time.
        weights: num_examples of each update, >= 1.
        model: These elements of the model that the round started from; shape and dtype like an update.
        options: The options of the training's aggregation.
    """

    updates: Sequence[Tensor]
    weights: Sequence[int]
    model: Tensor
    options: Mapping[str, float]


class Aggregator(Protocol):
    """A pure function of one block."""

    def __call__(self, block: Block, /) -> Tensor:
        """Aggregates one block.

        Returns:
            Shape (elements,), float64; the caller rounds it to the model's dtype.
        """
