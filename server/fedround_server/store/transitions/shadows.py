"""The models of shadow aggregations: created with a training, and continued when one of its rounds is committed."""

from collections.abc import Sequence
from datetime import datetime

from fedround_server.aggregators import from_aggregation
from fedround_server.domain.aggregation import title
from fedround_server.domain.audit import AuditRecord
from fedround_server.domain.shadow import ShadowResult
from fedround_server.domain.training import TrainingSpec
from fedround_server.store.db.audit_trail import append
from fedround_server.store.queries.shadow import shadow_models
from fedround_server.store.tables.schema import RoundRow, TrainingRow, UpdateRow
from fedround_server.store.tables.shadow_schema import ShadowRow
from fedround_server.store.transitions.versions import add_branch_version, branch_facts, drop_versions, insert_branch


def create_shadows(training_id: str, model_id: str, spec: TrainingSpec, ids: Sequence[str], now: datetime) -> None:
    """Creates the models of the shadow aggregations of a new training, as copies of the version that it starts from.

    Args:
        training_id: The training.
        model_id: Its model.
        spec: What is trained.
        ids: The ids of the new models.
        now: The present time.
    """
    for position, (shadow, shadow_id) in enumerate(zip(spec.aggregation.shadows, ids, strict=True)):
        name = f"{spec.name[:100]}: shadow {position + 1}, {title(shadow.rule)}"[:200]
        description = f"a shadow aggregation of the training {training_id}"
        insert_branch(shadow_id, model_id, shadow.slots, now, name=name, description=description)
        ShadowRow.create(training_id=training_id, position=position, model_id=shadow_id)
        facts = {"position": position, **from_aggregation(shadow)}
        append(AuditRecord("shadow_created", training_id, shadow_id, "0", facts))


def add_shadow_versions(
    training: TrainingRow, row: RoundRow, updates: Sequence[UpdateRow], shadows: Sequence[ShadowResult], now: datetime
) -> None:
    """Adds the next version to the model of each shadow aggregation, with what became of it in the audit log.

    Raises:
        ValueError: The results are not those of the shadow aggregations of the training.
    """
    spec_shadows = training.spec["aggregation"].get("shadow", ())
    expected = shadow_models(training.training_id) if spec_shadows else ()
    if tuple(one.model_id for one in shadows) != expected:
        raise ValueError("a round is committed without the results of its shadow aggregations")
    num_examples = sum(update.num_examples for update in updates)
    for one, stages in zip(shadows, spec_shadows, strict=True):
        add_branch_version(one.model_id, training.model_version, one.file, one.state, now)
        counted = {"round": row.number, "rounds": 1, "num_updates": len(updates), "num_examples": num_examples}
        facts = {**branch_facts(one.file, one.state, one.problem), **counted, **stages}
        version = str(training.model_version)
        append(AuditRecord("shadow_version_made", training.training_id, one.model_id, version, facts))
        drop_versions(training, one.model_id)
