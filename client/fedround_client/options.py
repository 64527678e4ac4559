"""What an actor may choose between, from what is easy to write to the messages of the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fedround.v1 import training_pb2
from fedround.v1.aggregation_pb2 import (
    Aggregation,
    Ensemble,
    FedAvg,
    FedDc,
    FedProx,
    McDropout,
    NoUncertainty,
    Swag,
    Uncertainty,
)
from fedround.v1.training_pb2 import ModelSelection

AggregationChoice: TypeAlias = FedAvg | FedProx | FedDc | Aggregation
UncertaintyChoice: TypeAlias = NoUncertainty | McDropout | Swag | Ensemble | Uncertainty
EvaluationName: TypeAlias = Literal["EVERY_ROUND", "FINAL_ONLY", "NEVER"]
PrecisionName: TypeAlias = Literal["FULL", "FLOAT16", "BFLOAT16"]
GoalName: TypeAlias = Literal["MINIMIZE", "MAXIMIZE"]


@dataclass(frozen=True)
class Selection:
    """Which version of a model is tagged `best`, and when to stop looking for a better one.

    Attributes:
        metric: One of the training's metric_names.
        goal: "MINIMIZE" for a loss, "MAXIMIZE" for an accuracy.
        patience: The training finishes early when so many model updates in a row made no better version; 0: never.
    """

    metric: str
    goal: GoalName
    patience: int = 0


def aggregation(choice: AggregationChoice | None) -> Aggregation | None:
    """Puts an algorithm's options into their message."""
    match choice:
        case FedAvg():
            return Aggregation(fed_avg=choice)
        case FedProx():
            return Aggregation(fed_prox=choice)
        case FedDc():
            return Aggregation(fed_dc=choice)
        case _:
            return choice


def uncertainty(choice: UncertaintyChoice | None) -> Uncertainty | None:
    """Puts a method's options into their message."""
    match choice:
        case NoUncertainty():
            return Uncertainty(none=choice)
        case McDropout():
            return Uncertainty(mc_dropout=choice)
        case Swag():
            return Uncertainty(swag=choice)
        case Ensemble():
            return Uncertainty(ensemble=choice)
        case _:
            return choice


def selection(choice: Selection | None) -> ModelSelection | None:
    """Makes the message."""
    if choice is None:
        return None
    goal = training_pb2.Goal.Value(f"GOAL_{choice.goal}")
    return ModelSelection(metric=choice.metric, goal=goal, patience=choice.patience)
