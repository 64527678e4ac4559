"""What engines are asked for, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class AggregationFailed(ValueError):
    """The updates have no aggregate that can be stored."""


@dataclass(frozen=True, slots=True)
class AggregationJob:
    """A round to aggregate.

    Attributes:
        model: The file of the model that the round started from; the result has its layout.
        updates: The updates' files, in canonical order.
        weights: num_examples of each.
        algorithm: Name of the aggregator.
        options: Its options.
    """

    model: Path
    updates: tuple[Path, ...]
    weights: tuple[int, ...]
    algorithm: str
    options: Mapping[str, float]
