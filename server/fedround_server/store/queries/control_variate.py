"""Reads of the control variates of aggregations."""

from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import BlobRef
from fedround_server.store.queries.version import aggregation_state
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import RoundRow, TrainingRow


def find_control_variate(training: TrainingRow, row: RoundRow) -> BlobRef | None:
    """Returns the control variate of the version that a round started from; None if it has none (yet).

    Raises:
        FieldInvalid: The rule of the training has no control variates.
    """
    aggregation = to_spec(training.spec).aggregation
    slot = aggregation.control_slot
    if slot is None:
        raise FieldInvalid(
            "training_id", f"names a training with {aggregation.rule.name}, which has no control variate"
        )
    return aggregation_state(training.model_id, row.model_version, [slot]).slots.get(slot)
