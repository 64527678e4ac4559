"""Which stages of an aggregation go together, and with which other options of a training."""

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
        for field, stage in found.stages.items():
            if stage is not rule:
                raise AggregationIncompatible(
                    field, f"does not go with {rule.name}, whose local models have been with several participants"
                )
    if found.mixing is not None and (rule.needs_steps or rule.needs_loss or rule.required_users()):
        raise AggregationIncompatible(
            "mixing", f"does not go with {rule.name}, which has to know whose an update is: mixed ones have no owner"
        )


def check_reachable(spec: TrainingSpec) -> None:
    """Checks that a round cannot close with fewer updates than its aggregation needs, whoever is registered.

    Raises:
        AggregationIncompatible: The training's policy or its cohort has it close with fewer.
    """
    found = spec.aggregation
    counts = {"round_policy.min_updates": spec.round_policy.min_updates}
    if spec.cohort is not None:
        counts["cohort.size"] = spec.cohort.size or 0
    for field, count in counts.items():
        if 0 < count < found.min_updates:
            raise AggregationIncompatible(
                found.rule.name, f"{found.demand} updates in a round, and spec.{field} is {count}"
            )
