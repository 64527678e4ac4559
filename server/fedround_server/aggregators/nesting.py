"""Which trainings go with relays, and what the training that makes a relay's sum must be."""

from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.domain.errors import AggregationIncompatible, FieldInvalid
from fedround_server.domain.training import Evaluation, TrainingSpec
from fedround_server.domain.uncertainty import Swag

STAGES = {
    "clipping": "scales each update by its own norm",
    "mixing": "makes averages of single updates",
    "buffering": "weighs each update by its own staleness",
    "differential_privacy": "bounds what each update adds to the sum",
}
"""Stages that need single updates, and what for."""


def check_nested(spec: TrainingSpec) -> None:
    """Checks that a training goes with relays, if it allows them, and with its rule, if that makes a partial sum.

    Raises:
        AggregationIncompatible: Its aggregation needs single updates.
        FieldInvalid: Another option does not go with partial sums.
    """
    if isinstance(spec.aggregation.rule, PartialSum):
        _check_sum(spec)
    if spec.allow_relays:
        _check_relays(spec)


def _check_relays(spec: TrainingSpec) -> None:
    found = spec.aggregation
    if not found.rule.nests:
        raise AggregationIncompatible(
            found.rule.name,
            "does not go with spec.allow_relays: it needs single updates, and a relay sends the sum of many; choose"
            " fed_avg or fed_prox",
        )
    for field in found.stages:
        if field in STAGES:
            raise AggregationIncompatible(
                field, f"does not go with spec.allow_relays: it {STAGES[field]}, and a relay sends the sum of many"
            )
    if found.shadows:
        raise AggregationIncompatible(
            "shadow", "does not go with spec.allow_relays: it needs single updates, and a relay sends the sum of many"
        )
    if isinstance(spec.uncertainty, Swag):
        raise FieldInvalid(
            "spec.uncertainty", "does not go with spec.allow_relays: relays send no moments of SWAG; choose one"
        )


def _check_sum(spec: TrainingSpec) -> None:
    name = spec.aggregation.rule.name
    if spec.target_num_updates != 1:
        raise FieldInvalid(
            "spec.target_num_updates", f"is {spec.target_num_updates}; must be 1 with {name}, whose result is no model"
        )
    if spec.metric_names and spec.evaluation is not Evaluation.NEVER:
        raise FieldInvalid(
            "spec.evaluation", f"must be EVALUATION_NEVER with {name}, whose result is no model to evaluate"
        )
    if isinstance(spec.uncertainty, Swag):
        raise FieldInvalid("spec.uncertainty", f"does not go with {name}, whose result is no model")
