"""Reads of what shadow aggregations of rounds need."""

from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.rounds.kind import Computation
from fedround_server.domain.shadow import ShadowTask
from fedround_server.store.queries.shadow import shadow_models
from fedround_server.store.queries.version import aggregation_state
from fedround_server.store.tables.schema import RoundRow


def shadow_tasks(row: RoundRow, computation: Computation | None) -> tuple[ShadowTask, ...]:
    """Returns the shadow aggregations of a round; none if it makes no version."""
    stages = None if computation is None else computation.aggregation
    if not isinstance(stages, Aggregation) or not stages.shadows:
        return ()
    return tuple(
        ShadowTask(model_id, shadow, aggregation_state(model_id, row.model_version, shadow.slots))
        for model_id, shadow in zip(shadow_models(row.training_id), stages.shadows, strict=True)
    )
