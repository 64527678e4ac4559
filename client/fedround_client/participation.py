"""The types of `Client.participate`: what its functions get and return."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from fedround_client.config import Plain
from fedround_client.metrics import MetricValue, split_metrics
from fedround_client.round_control import Control
from fedround_client.tensor_types import StateDict
from fedround_client.transport import PrecisionName, TensorPrecision


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Round:
    """A round that a participant works on.

    Attributes:
        training_id: UUID of the training.
        number: Number of the round, from 0 as in the API; logs and the `fedround` command count from 1.
        kind: "TRAIN", "EVALUATE" or "SWAG".
        model_version: Version of the model that the function gets: the number of updates of the global model so far.
        deadline: When the round ends at the latest, in UTC; None if it has no deadline.
        fed_prox_mu: Add mu / 2 * ||w - w_global||^2 to the loss; 0.0 unless the aggregation is FedProx.
        metric_names: Metrics that an evaluation must report.
        local_rounds: How many local rounds to train before returning; above 1 in daisy chaining (FedDc) only.
        assigned: Whether the model is another participant's local model, assigned to this one (FedDc).
        swag_rank: How many deviations a SWAG round needs: Moments(round.swag_rank).
        attempt: Which attempt at the round this is, from 1: a round that misses its deadline may be repeated.
        update_precision: "FULL"; or "FLOAT16", "BFLOAT16" or "INT8" if the update may be sent as differences in that
            precision, which `participate` does by itself.
        stochastic_rounding: Whether it rounds the differences at random.
        tensor_precisions: Precisions of some of the tensors in place of that, by globs of their names.
        trainable: Globs of the tensors that the training updates; empty for all but the private ones.
        private: Globs of the tensors that this participant keeps, which `participate` never sends.
        config: The configuration of this round for this participant: numbers, texts and bools by name.
        algorithm: The rule of the aggregation, such as "fed_avg", or "fed_nova", which needs `Update.local_steps`.
        control: What corrects the gradients with SCAFFOLD and FedDyn: `round.control.correct(gradients, weights)`.
            None with other rules.
        is_over: Returns whether the round is over, for example since enough others were faster; in an asynchronous
            training, whether an update would be too old. It asks the server, at most once a second. A function that
            takes long may call it from time to time, and return anything once it is True: that is not sent.
    """

    training_id: str
    number: int
    kind: str
    model_version: int
    deadline: datetime | None = None
    fed_prox_mu: float = 0.0
    metric_names: tuple[str, ...] = ()
    local_rounds: int = 1
    assigned: bool = False
    swag_rank: int = 0
    attempt: int = 1
    update_precision: PrecisionName = "FULL"
    stochastic_rounding: bool = False
    tensor_precisions: Mapping[str, TensorPrecision] = field(default_factory=dict, hash=False)
    trainable: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    config: Mapping[str, Plain] = field(default_factory=dict, hash=False)
    algorithm: str = "fed_avg"
    control: Control | None = field(default=None, compare=False, repr=False)
    is_over: Callable[[], bool] = field(default=_never, compare=False, repr=False)


@dataclass(frozen=True)
class Update:
    """The result of training a model.

    Attributes:
        model: Tensors with the names and shapes of the round's model: numpy arrays, torch tensors, or arrays of other
            libraries. `participate` casts floating-point tensors to the model's dtypes. It sends those that the
            training updates, keeps those that are private, and ignores the others, which may be left out.
        num_examples: Number of examples that it was trained on, which is its weight; at least 0.
        metrics: Up to 1000 metrics to store with the update, by name: numbers, which the server averages without NaN
            and infinity, and texts and lists of numbers, which it keeps for the actor.
        local_steps: How many steps of the local optimizer made it, at least 1; FedNova and SCAFFOLD need it.
        initial_loss: The loss of the round's model on this participant's data, before training, at least 0; QFedAvg
            needs it. If it is None, `participate` takes the "loss" that evaluate returns for that model.
        learning_rate: The learning rate of the local steps, > 0; SCAFFOLD needs it. It is not sent.
    """

    model: StateDict
    num_examples: int
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    local_steps: int | None = None
    initial_loss: float | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Checks what would otherwise fail later, while the update is sent.

        Raises:
            TypeError: num_examples or local_steps is not an integer, or a metric has a type that is not allowed.
            ValueError: There are too many metrics, one is too long, or a number is out of range.
        """
        _check_count("num_examples", self.num_examples)
        split_metrics(self.metrics)
        if self.local_steps is not None:
            _check_count("local_steps", self.local_steps)
            if self.local_steps < 1:
                raise ValueError(f"local_steps must be at least 1, not {self.local_steps}")
        if self.initial_loss is not None and not (math.isfinite(self.initial_loss) and self.initial_loss >= 0):
            raise ValueError(f"initial_loss must be finite and at least 0, not {self.initial_loss}")
        if self.learning_rate is not None and not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be finite and > 0, not {self.learning_rate}")


@dataclass(frozen=True)
class Participation:
    """How a training ended for a participant.

    Attributes:
        training_id: UUID of the training.
        model_id: UUID of the trained model.
        model_version: Its last version.
        rounds: How many of this participant's updates and metric reports were accepted.
    """

    training_id: str
    model_id: str
    model_version: int
    rounds: int


Mode: TypeAlias = Literal["subscribe", "poll"]
"""How a participant learns of rounds: by a stream that stays open, or by asking from time to time."""
TrainResult: TypeAlias = Update | tuple[StateDict, int] | tuple[StateDict, int, Mapping[str, MetricValue]]
Train: TypeAlias = Callable[[dict[str, Any], Round], TrainResult]
Evaluate: TypeAlias = Callable[[dict[str, Any], Round], tuple[Mapping[str, MetricValue], int]]


@dataclass(frozen=True)
class Callbacks:
    """The user's functions: for rounds of training, of evaluation, and of SWAG."""

    train: Train
    evaluate: Evaluate | None = None
    swag: Train | None = None


def as_update(result: TrainResult) -> Update:
    """Returns the result of a train or swag function as an Update.

    Raises:
        TypeError: The function returned something else.
    """
    if isinstance(result, Update):
        return result
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise TypeError(
            f"train must return an Update, or (model, num_examples), or (model, num_examples, metrics); it returned"
            f" a {_type_name(result)}"
        )
    return Update(*result)


def as_report(result: tuple[Mapping[str, MetricValue], int]) -> tuple[Mapping[str, MetricValue], int]:
    """Returns the result of an evaluate function, metrics and number of examples, after a check of its type.

    Raises:
        TypeError: The function returned something else, num_examples is not an integer, or a metric has a type that is
            not allowed.
        ValueError: There are too many metrics, or one is too long.
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Mapping):
        raise TypeError(f"evaluate must return (metrics, num_examples); it returned a {_type_name(result)}")
    split_metrics(result[0])
    _check_count("num_examples", result[1])
    return result


def _check_count(name: str, value: Any) -> None:
    try:
        if isinstance(value, bool):
            raise TypeError(value)
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None


def _type_name(value: object) -> str:
    return f"tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
