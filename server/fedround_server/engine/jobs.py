"""What engines are asked for, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedround_server.domain.model import Dtype
from fedround_server.domain.prediction import Array


class AggregationFailed(ValueError):
    """The updates have no aggregate that can be stored."""


class PredictionFailed(ValueError):
    """There is no prediction; the first argument says whose fault it is, the second what happened."""

    @property
    def fault(self) -> str:
        """What has to be mended: "inputs", "weights", "architecture", "dropout" or "memory"."""
        return str(self.args[0])

    @property
    def message(self) -> str:
        """What happened."""
        return str(self.args[1])


@dataclass(frozen=True, slots=True)
class PredictionJob:
    """Inputs, and who predicts.

    Attributes:
        architecture: The operator's factory, as package.module:callable.
        models: The model's file; for an ensemble those of all that vote.
        posterior: The file of the SWAG posterior.
        method: Name of the uncertainty method.
        options: Its options.
        seed: Makes what is drawn reproducible.
    """

    architecture: str
    models: tuple[Path, ...]
    posterior: Path | None
    inputs: Array
    method: str
    options: Mapping[str, Any]
    seed: int | None


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that a participant started from.

    Attributes:
        path: Its file.
        prefix: What the participant's update puts before the names of its tensors.
    """

    path: Path
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """What is known of a file's numbers.

    Attributes:
        not_finite: The name of a tensor that contains NaN or Inf; then nothing else is known.
        norm: How far it is from its origin: the L2 norm of the difference over all floating tensors; 0 without one.
    """

    not_finite: str | None = None
    norm: float = 0.0


@dataclass(frozen=True, slots=True)
class AggregationJob:
    """A round to aggregate.

    Attributes:
        model: The file of the model that the round started from; the result has its layout.
        updates: The updates' files, in canonical order.
        weights: num_examples of each.
        algorithm: Name of the aggregator.
        options: Its options.
        differences: The type in which updates may have differences from the model, in place of wider tensors.
    """

    model: Path
    updates: tuple[Path, ...]
    weights: tuple[int, ...]
    algorithm: str
    options: Mapping[str, float]
    differences: Dtype | None = None
