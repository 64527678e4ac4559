"""Which stages of an aggregation go together."""

from fedround_server.aggregators.fl_trust import FLTrust
from fedround_server.domain.aggregation import Aggregation, DaisyChaining
from fedround_server.domain.errors import AggregationIncompatible


def check_compatible(found: Aggregation) -> None:
    """Checks that the stages of an aggregation go together.

    Raises:
        AggregationIncompatible: Two do not.
    """
    rule = found.rule
    if isinstance(rule, DaisyChaining):
        for field, stage in found.stages.items():
            if stage is not rule:
                raise AggregationIncompatible(
                    field, f"does not go with {rule.name}, whose local models have been with several participants"
                )
    if found.mixing is not None and (rule.needs_steps or rule.needs_loss or isinstance(rule, FLTrust)):
        raise AggregationIncompatible(
            "mixing", f"does not go with {rule.name}, which has to know whose an update is: mixed ones have no owner"
        )
