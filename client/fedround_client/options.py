"""Options of trainings and predictions, and their conversion to the messages of the API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fedround.v1 import training_pb2
from fedround.v1.aggregation_pb2 import Aggregation, Ensemble, McDropout, NoUncertainty, Swag, Uncertainty
from fedround.v1.training_pb2 import ModelSelection, RoundPolicy, TensorSelection
from fedround_client.aggregation import AggregationOption, aggregate
from fedround_client.rpc import duration

UncertaintyOption: TypeAlias = NoUncertainty | McDropout | Swag | Ensemble | Uncertainty
EvaluationName: TypeAlias = Literal["EVERY_ROUND", "FINAL_ONLY", "NEVER"]
IntegerTensorsName: TypeAlias = Literal["HEAVIEST", "MEAN"]
OnFailureName: TypeAlias = Literal["CONTINUE", "FAIL"]
GoalName: TypeAlias = Literal["MINIMIZE", "MAXIMIZE"]


WAIT_SECONDS, WAIT_FRACTION = 5.0, 0.1
"""How long a round with min_updates waits for others by default: seconds, and the part of the earlier rounds' time."""


@dataclass(frozen=True)
class Selection:
    """Which version of a model gets the tag `best`, and when training stops early.

    Attributes:
        metric: One of the training's metric_names.
        goal: "MINIMIZE" for a loss, "MAXIMIZE" for an accuracy.
        patience: The training finishes after this many model updates in a row without a better version; 0: never.
    """

    metric: str
    goal: GoalName
    patience: int = 0


def aggregation(option: AggregationOption | None) -> Aggregation | None:
    """Returns the message for an aggregation: that of a rule, by the type of its message.

    Raises:
        TypeError: The message is no rule.
    """
    return option if option is None or isinstance(option, Aggregation) else aggregate(option)


def evaluation(name: EvaluationName | None, stages: Aggregation | None) -> training_pb2.Evaluation.ValueType:
    """Returns when participants evaluate the model; None leaves that to the server in an asynchronous training."""
    if name is None:
        name = "EVERY_ROUND" if stages is None or not stages.HasField("buffering") else None
    return training_pb2.EVALUATION_UNSPECIFIED if name is None else training_pb2.Evaluation.Value(f"EVALUATION_{name}")


def uncertainty(option: UncertaintyOption | None) -> Uncertainty | None:
    """Returns the message for a method of uncertainty estimation and its options."""
    match option:
        case NoUncertainty():
            return Uncertainty(none=option)
        case McDropout():
            return Uncertainty(mc_dropout=option)
        case Swag():
            return Uncertainty(swag=option)
        case Ensemble():
            return Uncertainty(ensemble=option)
        case _:
            return option


def round_policy(
    min_updates: int,
    deadline: float | None,
    max_retries: int,
    on_failure: OnFailureName,
    absent_after: float | None,
    wait_after_min: float | None,
) -> RoundPolicy:
    """Returns the message for when rounds close; durations are seconds, as in `create_training`."""
    policy = RoundPolicy(
        min_updates=min_updates,
        deadline=duration(deadline),
        on_missed=training_pb2.ON_MISSED_RETRY if max_retries else training_pb2.ON_MISSED_UNSPECIFIED,
        max_retries=max_retries,
        on_failure=training_pb2.OnFailure.Value(f"ON_FAILURE_{on_failure}"),
        absent_after=duration(absent_after),
    )
    if wait_after_min is not None:
        policy.wait_after_min.CopyFrom(duration(wait_after_min))
    elif min_updates:
        policy.wait_after_min.CopyFrom(duration(WAIT_SECONDS))
        policy.wait_fraction = WAIT_FRACTION
    return policy


def tensors(trainable: Iterable[str], private: Iterable[str], external_base_sha256: str) -> TensorSelection | None:
    """Returns the message for which tensors updates contain; None for all.

    Raises:
        TypeError: A string is given in place of a list.
    """
    if isinstance(trainable, str) or isinstance(private, str):
        raise TypeError('trainable and private are lists of globs: trainable=["*.lora_?"].')
    message = TensorSelection(trainable=trainable, private=private, external_base_sha256=external_base_sha256)
    return message if message.ByteSize() else None


def selection(option: Selection | None) -> ModelSelection | None:
    """Returns the message for the selection of the best version."""
    if option is None:
        return None
    goal = training_pb2.Goal.Value(f"GOAL_{option.goal}")
    return ModelSelection(metric=option.metric, goal=goal, patience=option.patience)
