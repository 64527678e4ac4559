"""What goes with buffering, and with which other options of a training."""

from datetime import timedelta

from fedround_server.domain.aggregation import Aggregation, Buffering, DaisyChaining
from fedround_server.domain.errors import AggregationIncompatible
from fedround_server.domain.training import Evaluation, TrainingSpec
from fedround_server.domain.uncertainty import Swag

FIELD = "buffering"
SYNCHRONOUS_RULES = {
    "scaffold": "whose control variates are those of one version",
    "fed_dyn": "whose regularizer is that of one version",
    "lora_stack": "whose adapters begin anew at each version",
}
"""Rules that take updates of the round's version only, and why."""
SYNCHRONOUS_STAGES = {"differential_privacy": "whose guarantee counts the participants of a round"}
"""Other stages that do so."""


def check_buffered(found: Aggregation) -> None:
    """Checks that the stages of an aggregation go with its buffering.

    Raises:
        AggregationIncompatible: One does not.
    """
    rule = found.rule
    if isinstance(rule, DaisyChaining):
        raise _incompatible(f"does not go with {rule.name}, in whose rounds local models change hands")
    if rule.name in SYNCHRONOUS_RULES:
        raise _incompatible(f"does not go with {rule.name}, {SYNCHRONOUS_RULES[rule.name]}")
    for field in found.stages.keys() & SYNCHRONOUS_STAGES.keys():
        raise _incompatible(f"does not go with {field}, {SYNCHRONOUS_STAGES[field]}")


def check_asynchronous(spec: TrainingSpec, buffering: Buffering) -> None:
    """Checks that the options of a training go with buffering.

    Raises:
        AggregationIncompatible: One does not.
    """
    policy, cohort = spec.round_policy, spec.cohort
    if policy.min_updates:
        raise _incompatible("says how many updates close a round: leave spec.round_policy.min_updates unset")
    if policy.wait_after_min > timedelta(0) or policy.wait_fraction > 0:
        raise _incompatible("does not wait for others: leave spec.round_policy.wait_after_min unset")
    if cohort is not None and (cohort.is_drawn or cohort.available_only):
        raise _incompatible(
            "takes updates of all participants: of spec.cohort, only labels and min_available go with it"
        )
    if spec.metric_names and spec.evaluation is Evaluation.EVERY_ROUND:
        raise _incompatible(
            "does not go with EVALUATION_EVERY_ROUND, since an evaluation waits for everybody: choose"
            " EVALUATION_FINAL_ONLY or EVALUATION_NEVER, or send metrics with the updates"
        )
    if spec.selection is not None and spec.selection.patience:
        raise _incompatible("does not go with spec.selection.patience, which needs an evaluation of each version")
    if isinstance(spec.uncertainty, Swag):
        raise _incompatible("does not go with swag, whose rounds wait for everybody")
    if spec.aggregation.min_updates > buffering.size:
        raise _incompatible(
            f"makes a version of {buffering.size} updates, and {spec.aggregation.demand} updates: increase its size"
        )


def _incompatible(description: str) -> AggregationIncompatible:
    return AggregationIncompatible(FIELD, description)
