"""Which stages of an aggregation go together, and with which other options of a training."""

from fedround_server.aggregators.asynchronous import check_asynchronous, check_buffered
from fedround_server.aggregators.lora import ProductRule
from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.aggregators.privacy_checks import check_private
from fedround_server.domain.aggregation import Aggregation, DaisyChaining
from fedround_server.domain.errors import AggregationIncompatible
from fedround_server.domain.training import TrainingSpec


def check_compatible(found: Aggregation) -> None:
    """Checks that the stages of an aggregation go together.

    Raises:
        AggregationIncompatible: Two do not.
    """
    check_private(found)
    rule = found.rule
    if isinstance(rule, DaisyChaining):
        _check_alone(found, "whose local models have been with several participants")
    if isinstance(rule, PartialSum):
        _check_alone(found, "whose result is no model, but a sum for another server")
    if isinstance(rule, ProductRule):
        _check_alone(
            found,
            "which aggregates products of adapters: there are no differences from the model that could be scaled, mixed"
            " or followed",
        )
    if found.mixing is not None and (rule.needs_steps or rule.needs_loss or rule.required_users()):
        raise AggregationIncompatible(
            "mixing", f"does not go with {rule.name}, which has to know whose an update is: mixed ones have no owner"
        )
    if rule.slots:
        for field in ("clipping", "mixing"):
            if field in found.stages:
                raise AggregationIncompatible(
                    field,
                    f"does not go with {rule.name}: what it remembers of the updates, and what participants remember,"
                    " would no longer belong together",
                )
    if found.server_optimizer is not None and not rule.takes_optimizer:
        raise AggregationIncompatible(
            "server_optimizer", f"does not go with {rule.name}, which makes a step of its own with what it remembers"
        )
    if found.buffering is not None:
        check_buffered(found)


def _check_alone(found: Aggregation, reason: str) -> None:
    """Checks that an aggregation has no other stage than its rule."""
    for field, stage in found.stages.items():
        if stage is not found.rule:
            raise AggregationIncompatible(field, f"does not go with {found.rule.name}, {reason}")


def check_reachable(spec: TrainingSpec) -> None:
    """Checks that a round cannot close with fewer updates than its aggregation needs, whoever is registered.

    Raises:
        AggregationIncompatible: The training's policy or its cohort has it close with fewer.
    """
    found = spec.aggregation
    if found.buffering is not None:
        check_asynchronous(spec, found.buffering)
    counts = {"round_policy.min_updates": spec.round_policy.min_updates}
    if spec.cohort is not None:
        counts["cohort.size"] = spec.cohort.size or 0
    for field, count in counts.items():
        if 0 < count < found.min_updates:
            raise AggregationIncompatible(
                found.rule.name, f"{found.demand} updates in a round, and spec.{field} is {count}"
            )
