"""Reads a TrainingSpec message."""

import math
from datetime import timedelta

from fedround.v1 import aggregation_pb2, training_pb2
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.training import (
    MAX_NUM_EXAMPLES,
    MAX_TARGET_NUM_UPDATES,
    Aggregation,
    Evaluation,
    RoundPolicy,
    TrainingSpec,
)
from fedround_server.services import fields

MAX_DEADLINE = timedelta(days=365)


def read(message: training_pb2.TrainingSpec) -> TrainingSpec:
    """Reads a spec and fills in the defaults.

    Raises:
        FieldInvalid: A field is missing, malformed or out of range.
    """
    _refuse_uncertainty(message)
    return TrainingSpec(
        name=fields.a_text("spec.name", message.name, 200),
        description=fields.a_text("spec.description", message.description, 10_000),
        target_num_updates=_target(message.target_num_updates),
        metric_names=fields.metric_names(message.metric_names),
        client_ids=tuple(fields.ids("spec.client_ids", message.client_ids)),
        aggregation=_aggregation(message.aggregation),
        round_policy=_round_policy(message.round_policy),
        evaluation=_evaluation(message.evaluation),
        max_num_examples=_cap(message.max_num_examples),
        model_id=fields.an_optional_id("spec.model_id", message.model_id),
        request_id=fields.an_optional_id("spec.request_id", message.request_id),
    )


def _target(value: int) -> int:
    if not 1 <= value <= MAX_TARGET_NUM_UPDATES:
        raise FieldInvalid("spec.target_num_updates", f"is {value}; must be in 1..{MAX_TARGET_NUM_UPDATES}")
    return value


def _cap(value: int) -> int:
    if value > MAX_NUM_EXAMPLES:
        raise FieldInvalid("spec.max_num_examples", f"is {value}; must be in 1..{MAX_NUM_EXAMPLES}, or 0 for that")
    return value or MAX_NUM_EXAMPLES


def _aggregation(message: aggregation_pb2.Aggregation) -> Aggregation:
    """Reads the algorithm and its options: the oneof's field names are the aggregators' names."""
    algorithm = message.WhichOneof("algorithm")
    if algorithm is None:
        return Aggregation()
    options = getattr(message, algorithm)
    values = {field.name: float(getattr(options, field.name)) for field in options.DESCRIPTOR.fields}
    for name, value in values.items():
        if not math.isfinite(value) or value < 0:
            raise FieldInvalid(f"spec.aggregation.{algorithm}.{name}", f"is {value}; must be finite and >= 0")
    return Aggregation(algorithm, values)


def _round_policy(message: training_pb2.RoundPolicy) -> RoundPolicy:
    if message.late_updates not in (training_pb2.LATE_UPDATES_UNSPECIFIED, training_pb2.LATE_UPDATES_REJECT):
        raise FieldInvalid("spec.round_policy.late_updates", f"is {message.late_updates}; known is LATE_UPDATES_REJECT")
    if message.min_updates > fields.MAX_CLIENTS:
        raise FieldInvalid("spec.round_policy.min_updates", f"is {message.min_updates}; at most {fields.MAX_CLIENTS}")
    if not message.HasField("deadline"):
        return RoundPolicy(min_updates=message.min_updates)
    try:
        deadline = message.deadline.ToTimedelta()
    except (ValueError, OverflowError):
        deadline = timedelta(0)
    if not timedelta(0) < deadline <= MAX_DEADLINE:
        raise FieldInvalid("spec.round_policy.deadline", "must be positive, and at most 365 days")
    return RoundPolicy(min_updates=message.min_updates, deadline=deadline)


def _evaluation(value: training_pb2.Evaluation.ValueType) -> Evaluation:
    if value not in training_pb2.Evaluation.values():
        raise FieldInvalid("spec.evaluation", f"is {value}; known are {', '.join(training_pb2.Evaluation.keys())}")
    if value == training_pb2.EVALUATION_UNSPECIFIED:
        return Evaluation.EVERY_ROUND
    return Evaluation(training_pb2.Evaluation.Name(value).removeprefix("EVALUATION_"))


def _refuse_uncertainty(message: training_pb2.TrainingSpec) -> None:
    method = message.uncertainty.WhichOneof("method")
    if method not in (None, "none"):
        raise FieldInvalid("spec.uncertainty", f"{method} is not served by this version: leave it unset or none")
