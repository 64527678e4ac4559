"""Reads of the models of shadow aggregations."""

from fedround_server.store.tables.shadow_schema import ShadowRow


def find_shadow(model_id: str) -> ShadowRow | None:
    """Returns which shadow aggregation of which training makes, or made, versions of a model, if one does."""
    row: ShadowRow | None = ShadowRow.get_or_none(ShadowRow.model_id == model_id)
    return row


def shadow_models(training_id: str) -> tuple[str, ...]:
    """Returns the models of the shadow aggregations of a training, in the order of its spec."""
    rows = ShadowRow.select().where(ShadowRow.training_id == training_id)
    return tuple(row.model_id for row in sorted(rows, key=lambda row: row.position))
