"""What follows when a round's result is committed; runs inside the verb `commit`."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from fedround_server.domain.chain import averages, deal
from fedround_server.domain.event import RoundClosed
from fedround_server.domain.model import BEST, BlobRef
from fedround_server.domain.round import RoundKind, next_round
from fedround_server.domain.training import TrainingSpec, out_of_patience
from fedround_server.store.db.audit_trail import record
from fedround_server.store.queries.training import participant_ids
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import (
    AssignmentRow,
    ModelRow,
    ModelVersionRow,
    RoundRow,
    TagRow,
    TrainingRow,
    UpdateRow,
)
from fedround_server.store.transitions import contributions
from fedround_server.store.transitions.end_training import complete
from fedround_server.store.transitions.open_round import open_round
from fedround_server.store.transitions.training import append_event
from fedround_server.store.transitions.versions import insert_version, put_tag


def follow(
    training: TrainingRow,
    row: RoundRow,
    updates: Sequence[UpdateRow],
    metrics: Mapping[str, float],
    result: BlobRef | None,
    now: datetime,
) -> None:
    """Writes the result of a round that is done, and opens the next round or ends the training.

    Args:
        training: The training, locked.
        row: The round.
        updates: What counted in it, in canonical order.
        metrics: Its metrics, aggregated.
        result: The new model, or of a SWAG round the posterior; None for a round that makes no file.
        now: The time to write.
    """
    spec = to_spec(training.spec)
    kind = RoundKind(row.kind)
    if kind is RoundKind.TRAIN and result is not None:
        _add_version(training, result, now)
    elif kind is RoundKind.SWAG and result is not None:
        _add_posterior(training, result, int(spec.uncertainty.options["rank"]) * len(updates))
    contributions.count(training, row, updates, spec, result)
    if kind is RoundKind.EVALUATE:
        _select(training, spec, metrics)
    _retain(training, spec)
    asked = {name: metrics[name] for name in spec.metric_names if name in metrics}
    more = {name: value for name, value in metrics.items() if name not in asked}
    closed = RoundClosed(row.number, kind.value, training.model_version, len(updates), asked, more)
    append_event(training, closed, now)
    if kind is RoundKind.TRAIN and not averages(spec.aggregation, row.step):
        _go_on_chaining(training, spec, row, updates, now)
        return
    stop = out_of_patience(spec, training.model_version, training.best_version)
    following = next_round(spec, kind, training.model_version, stop=stop)
    if following is None:
        complete(training, now, early=training.model_version < spec.target_num_updates)
    else:
        open_round(training, row.number + 1, following, now)


def _add_version(training: TrainingRow, blob: BlobRef, now: datetime) -> None:
    training.model_version += 1
    insert_version(training.model_id, training.model_version, blob, now)
    ModelRow.update(version=training.model_version).where(ModelRow.model_id == training.model_id).execute()
    _count(training, blob.size_bytes)


def _add_posterior(training: TrainingRow, blob: BlobRef, rank: int) -> None:
    ModelVersionRow.update(
        posterior_sha256=blob.sha256, posterior_size_bytes=blob.size_bytes, posterior_rank=rank
    ).where(ModelVersionRow.model_id == training.model_id, ModelVersionRow.version == training.model_version).execute()
    _count(training, blob.size_bytes)


def _count(training: TrainingRow, size: int) -> None:
    """Counts bytes that the model has more, or fewer."""
    ModelRow.update(stored_bytes=ModelRow.stored_bytes + size).where(ModelRow.model_id == training.model_id).execute()


def _select(training: TrainingRow, spec: TrainingSpec, metrics: Mapping[str, float]) -> None:
    """Moves the tag `best` if the evaluated version is better than all before."""
    if spec.selection is None or spec.selection.metric not in metrics:
        return
    value = metrics[spec.selection.metric]
    if spec.selection.prefers(value, training.best_value):
        training.best_value = value
        training.best_version = training.model_version
        put_tag(training.model_id, training.model_version, BEST)


def _retain(training: TrainingRow, spec: TrainingSpec) -> None:
    """Drops the files of old versions without a tag."""
    if not spec.keep_versions:
        return
    tagged = TagRow.select(TagRow.version).where(TagRow.model_id == training.model_id)
    dropped = (
        (ModelVersionRow.model_id == training.model_id)
        & (ModelVersionRow.version <= training.model_version - spec.keep_versions)
        & ModelVersionRow.stored
        & ModelVersionRow.version.not_in(tagged)
    )
    rows = list(ModelVersionRow.select().where(dropped).order_by(ModelVersionRow.version))
    for row in rows:
        record("version_dropped", training, subject=row.version)
        ModelVersionRow.update(stored=False).where(
            ModelVersionRow.model_id == row.model_id, ModelVersionRow.version == row.version
        ).execute()
    if rows:
        _count(training, -sum(row.size_bytes + row.posterior_size_bytes for row in rows))


def _go_on_chaining(
    training: TrainingRow, spec: TrainingSpec, row: RoundRow, updates: Sequence[UpdateRow], now: datetime
) -> None:
    """Deals the updates to those who sent them and are present still; if none is, the chain begins anew."""
    present = set(participant_ids(training.training_id))
    local = {update.user_id: update for update in updates if update.user_id in present}
    number = row.number + 1
    for user_id, source in deal(list(local), spec.aggregation, row.number).items():
        AssignmentRow.create(
            training_id=training.training_id,
            number=number,
            user_id=user_id,
            sha256=local[source].sha256,
            size_bytes=local[source].size_bytes,
        )
    step = row.step + 1 if local else 0
    open_round(training, number, RoundKind.TRAIN, now, chain=list(local), step=step)
