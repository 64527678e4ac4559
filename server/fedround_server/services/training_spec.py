"""Reads a TrainingSpec message."""

import math

from fedround.v1 import training_pb2
from fedround_server.aggregators.compatibility import check_reachable
from fedround_server.aggregators.nesting import check_nested
from fedround_server.aggregators.privacy_checks import check_private_training
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.config import check, check_size
from fedround_server.domain.errors import FieldInvalid, UnknownClients
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.training import (
    MAX_NUM_EXAMPLES,
    MAX_TARGET_NUM_UPDATES,
    Evaluation,
    Goal,
    IntegerTensors,
    Selection,
    TrainingSpec,
)
from fedround_server.domain.uncertainty import Swag
from fedround_server.services import aggregation, config, fields, policy, tensor_selection, transport, uncertainty


def read(message: training_pb2.TrainingSpec) -> TrainingSpec:
    """Reads a spec and fills in the defaults.

    Raises:
        FieldInvalid: A field is missing, malformed or out of range.
        UnknownClients: There is a configuration of a user who is not to be registered.
    """
    if message.HasField("model_version") and not message.model_id:
        raise FieldInvalid("spec.model_version", "goes with spec.model_id: name the stored model too")
    if message.architecture and message.model_id:
        raise FieldInvalid("spec.architecture", "is for a streamed model: the stored one names its own")
    chosen = aggregation.read(message.aggregation)
    method = uncertainty.read("spec.uncertainty", message.uncertainty)
    precisions = transport.read(message, chosen)
    if message.allow_non_finite_buffers and isinstance(method, Swag):
        raise FieldInvalid(
            "spec.allow_non_finite_buffers", "does not go with swag, whose moments would not be finite: choose one"
        )
    spec = TrainingSpec(
        name=fields.parse_text("spec.name", message.name, 200),
        description=fields.parse_text("spec.description", message.description, 10_000),
        target_num_updates=_target(message),
        metric_names=fields.parse_metric_names(message.metric_names),
        client_ids=tuple(fields.parse_optional_ids("spec.client_ids", message.client_ids)),
        aggregation=chosen,
        round_policy=policy.read("spec.round_policy", message.round_policy),
        evaluation_policy=_evaluation_policy(message),
        cohort=_cohort(message),
        evaluation=_evaluation(message.evaluation, buffered=chosen.buffering is not None),
        max_num_examples=_cap(message.max_num_examples),
        max_update_norm=_norm(message.max_update_norm),
        update_precision=precisions.precision,
        stochastic_rounding=precisions.stochastic_rounding,
        tensor_precisions=precisions.rules,
        model_id=fields.parse_optional_id("spec.model_id", message.model_id),
        request_id=fields.parse_optional_id("spec.request_id", message.request_id),
        selection=_selection(message) if message.HasField("selection") else None,
        keep_versions=_keep_versions(message.keep_versions),
        keep_update_rounds=_keep_update_rounds(message),
        model_version=message.model_version if message.HasField("model_version") else None,
        architecture=fields.parse_architecture("spec.architecture", message.architecture),
        uncertainty=method,
        allow_non_finite_buffers=message.allow_non_finite_buffers,
        integer_tensors=_integer_tensors(message.integer_tensors),
        tensors=tensor_selection.read(message.tensors, chosen, method),
        config=config.read("spec.config", message.config),
        client_config=config.read_clients("spec.client_config", message.client_config),
        allow_relays=message.allow_relays,
    )
    check_nested(spec)
    check_reachable(spec)
    check_private_training(spec)
    _check_config(spec)
    return spec


def _check_config(spec: TrainingSpec) -> None:
    if unknown := spec.client_config.keys() - set(spec.client_ids):
        raise UnknownClients(sorted(unknown), "not among spec.client_ids", field="spec.client_config")
    check("spec.config", spec.config, spec.target_num_updates)
    for user_id, values in spec.client_config.items():
        check(f'spec.client_config["{user_id}"].values', values, spec.target_num_updates)
    check_size("spec.config", spec.config, spec.client_config)


def _target(message: training_pb2.TrainingSpec) -> int:
    value = message.target_num_updates
    evaluates = message.metric_names and message.evaluation != training_pb2.EVALUATION_NEVER
    if not value and message.model_id and evaluates:
        return 0
    if not 1 <= value <= MAX_TARGET_NUM_UPDATES:
        raise FieldInvalid(
            "spec.target_num_updates",
            f"is {value}; must be in 1..{MAX_TARGET_NUM_UPDATES}, or 0 to evaluate a stored model (spec.model_id) by"
            " spec.metric_names",
        )
    return value


def _cap(value: int) -> int:
    if value > MAX_NUM_EXAMPLES:
        raise FieldInvalid("spec.max_num_examples", f"is {value}; must be in 1..{MAX_NUM_EXAMPLES}, or 0 for that")
    return value or MAX_NUM_EXAMPLES


def _norm(value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise FieldInvalid("spec.max_update_norm", f"is {value}; must be finite and >= 0, and 0 is for any distance")
    return value


def _integer_tensors(value: training_pb2.IntegerTensors.ValueType) -> IntegerTensors:
    if value not in training_pb2.IntegerTensors.values():
        known = ", ".join(training_pb2.IntegerTensors.keys())
        raise FieldInvalid("spec.integer_tensors", f"is {value}; known are {known}")
    if value == training_pb2.INTEGER_TENSORS_UNSPECIFIED:
        return IntegerTensors.HEAVIEST
    return IntegerTensors(training_pb2.IntegerTensors.Name(value).removeprefix("INTEGER_TENSORS_"))


def _keep_versions(value: int) -> int:
    if value > MAX_TARGET_NUM_UPDATES:
        raise FieldInvalid("spec.keep_versions", f"is {value}; at most {MAX_TARGET_NUM_UPDATES}, or 0 for all")
    return value


def _keep_update_rounds(message: training_pb2.TrainingSpec) -> int | None:
    if not message.HasField("keep_update_rounds"):
        return None
    value = message.keep_update_rounds
    if value > MAX_TARGET_NUM_UPDATES:
        raise FieldInvalid(
            "spec.keep_update_rounds", f"is {value}; at most {MAX_TARGET_NUM_UPDATES}, or not set to keep all"
        )
    return value


def _selection(message: training_pb2.TrainingSpec) -> Selection:
    chosen = message.selection
    if chosen.metric not in message.metric_names:
        known = ", ".join(message.metric_names) or "none"
        raise FieldInvalid("spec.selection.metric", f"{chosen.metric[:80]!r} is not one of spec.metric_names: {known}")
    if chosen.goal not in (training_pb2.GOAL_MINIMIZE, training_pb2.GOAL_MAXIMIZE):
        raise FieldInvalid("spec.selection.goal", "is required: GOAL_MINIMIZE or GOAL_MAXIMIZE")
    every_round = (training_pb2.EVALUATION_UNSPECIFIED, training_pb2.EVALUATION_EVERY_ROUND)
    if message.evaluation == training_pb2.EVALUATION_NEVER or (
        chosen.patience and message.evaluation not in every_round
    ):
        raise FieldInvalid("spec.evaluation", "selects nothing: spec.selection wants EVALUATION_EVERY_ROUND")
    patience = fields.parse_at_most("spec.selection.patience", chosen.patience, MAX_TARGET_NUM_UPDATES)
    goal = Goal(training_pb2.Goal.Name(chosen.goal).removeprefix("GOAL_"))
    return Selection(chosen.metric, goal, patience)


def _evaluation_policy(message: training_pb2.TrainingSpec) -> RoundPolicy | None:
    if not message.HasField("evaluation_policy"):
        return None
    return policy.read("spec.evaluation_policy", message.evaluation_policy)


def _cohort(message: training_pb2.TrainingSpec) -> Cohort | None:
    if not message.HasField("cohort"):
        return None
    cohort = policy.read_cohort("spec.cohort", message.cohort)
    for field in ("round_policy", "evaluation_policy"):
        min_updates = getattr(message, field).min_updates
        if cohort.size is not None and cohort.size < min_updates:
            raise FieldInvalid(
                f"spec.{field}.min_updates",
                f"is {min_updates}, more than the {cohort.size} that a round asks for (spec.cohort.size)",
            )
    return cohort


def _evaluation(value: training_pb2.Evaluation.ValueType, *, buffered: bool) -> Evaluation:
    if value not in training_pb2.Evaluation.values():
        raise FieldInvalid("spec.evaluation", f"is {value}; known are {', '.join(training_pb2.Evaluation.keys())}")
    if value == training_pb2.EVALUATION_UNSPECIFIED:
        # An evaluation round waits for everybody.
        return Evaluation.FINAL_ONLY if buffered else Evaluation.EVERY_ROUND
    return Evaluation(training_pb2.Evaluation.Name(value).removeprefix("EVALUATION_"))
