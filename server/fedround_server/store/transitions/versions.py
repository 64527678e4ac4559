"""Changes of models: versions and their tags."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fedround_server.domain.aggregation import NO_STATE, STEPS, AggregationState
from fedround_server.domain.audit import AuditRecord
from fedround_server.domain.model import (
    PINNED,
    BaseAndDelta,
    BlobRef,
    Model,
    ModelVersion,
    NewModel,
    VersionFile,
    blobs_of,
)
from fedround_server.domain.rounds.kind import NewArtifact
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import append, record
from fedround_server.store.db.rows import save
from fedround_server.store.queries.model import get_model
from fedround_server.store.queries.version import (
    aggregation_state,
    artifacts_of,
    find_base,
    find_tag,
    get_version,
    has_deltas,
    known_version,
    list_untagged_versions,
)
from fedround_server.store.tables.mapping import (
    from_blob,
    from_manifest,
    from_version_file,
    to_blob,
    to_manifest,
    to_model,
    to_spec,
)
from fedround_server.store.tables.schema import (
    ArtifactRow,
    ModelBaseRow,
    ModelRow,
    ModelVersionRow,
    TagRow,
    TrainingRow,
)


def insert_model(
    model_id: str,
    owner_id: str,
    model: NewModel,
    now: datetime,
    source: ModelVersion | None = None,
    state: AggregationState = NO_STATE,
) -> Model:
    """Stores a model as version 0; the copy of a version may have the state of the aggregation that made it."""
    row = ModelRow.create(
        model_id=model_id,
        owner_id=owner_id,
        name=model.name,
        description=model.description,
        source_model_id=None if source is None else source.model_id,
        source_version=None if source is None else source.version,
        architecture=model.architecture,
        upload_id=model.upload_id,
        manifest=from_manifest(model.manifest),
        is_finite=model.is_finite,
        version=0,
        stored_bytes=sum(blob.size_bytes for blob in blobs_of(model.blob)),
        create_time=now,
    )
    origin = {"source_model_id": row.source_model_id, "source_version": row.source_version}
    if state.slots:
        origin["state"] = state.facts
    record("model_created", row, subject=0, sha256=model.blob.sha256, size_bytes=model.blob.size_bytes, **origin)
    if isinstance(model.blob, BaseAndDelta):
        ModelBaseRow.create(model_id=model_id, **from_blob(model.blob.base))
    insert_version(model_id, 0, model.blob, now)
    add_state(model_id, 0, state)
    return to_model(row, known_version(model_id, 0))


def copy_model(
    model_id: str,
    source: ModelRow,
    start: ModelVersion,
    slots: Sequence[str],
    now: datetime,
    *,
    name: str,
    description: str,
    upload_id: str | None = None,
) -> Model:
    """Stores a copy of a version of a model, with some slots of its state, as a new model of the same owner."""
    copy = NewModel(
        name,
        description,
        to_manifest(source.manifest),
        start.blob,
        architecture=source.architecture,
        upload_id=upload_id,
        is_finite=source.is_finite,
    )
    state = aggregation_state(source.model_id, start.version, slots)
    return insert_model(model_id, source.owner_id, copy, now, start, state)


def insert_branch(
    model_id: str,
    source_id: str,
    slots: Sequence[str],
    now: datetime,
    *,
    name: str,
    description: str,
    upload_id: str | None = None,
) -> Model:
    """Stores the model of a side branch, which begins with version 0 of another model.

    Its versions are deltas if those of the other model are.
    """
    source, start = get_model(source_id), known_version(source_id, 0)
    model = copy_model(model_id, source, start, slots, now, name=name, description=description, upload_id=upload_id)
    if find_base(source_id) is not None:
        begin_deltas(model_id)
    return model


def remove_model(row: ModelRow, now: datetime) -> None:
    """Removes a model with all its versions; no training that has not ended needs it."""
    row.remove_time = now
    save(row)
    record("model_removed", row)


def insert_version(model_id: str, version: int, file: VersionFile, now: datetime) -> None:
    """Stores a version of a model."""
    ModelVersionRow.create(
        model_id=model_id,
        version=version,
        **from_version_file(file),
        create_time=now,
        stored=True,
    )
    reached("version.inserted")


def begin_deltas(model_id: str) -> None:
    """Makes the file of a model's only version the base of those that follow, unless the model has a base."""
    if find_base(model_id) is None:
        # It counts in stored_bytes as before: now as the base.
        ModelBaseRow.create(model_id=model_id, **from_blob(to_blob(get_version(model_id, 0))))


def put_tag(model_id: str, version: int, tag: str, training_id: str = "") -> None:
    """Puts a tag on a version, and removes it from the version that had it, unless several may have it.

    A training that does so has it in its own audit chain.
    """
    others = TagRow.delete().where(TagRow.model_id == model_id, TagRow.tag == tag)
    if tag == PINNED:
        others = others.where(TagRow.version == version)
    others.execute()
    TagRow.create(model_id=model_id, version=version, tag=tag)
    append(AuditRecord("version_tagged", training_id, model_id, str(version), {"tag": tag}))


def remove_tag(model_id: str, version: int, tag: str) -> None:
    """Removes a tag from a version, if it has it."""
    row = find_tag(model_id, version, tag)
    if row is not None:
        row.delete_instance()
        record("version_untagged", row, subject=version, tag=tag)


def add_version(training: TrainingRow, file: VersionFile, now: datetime) -> None:
    """Stores the next version of a training's model."""
    training.model_version += 1
    _append_version(training.model_id, training.model_version, file, blobs_of(file)[-1].size_bytes, now)


def add_branch_version(model_id: str, version: int, file: VersionFile, state: AggregationState, now: datetime) -> None:
    """Stores the next version of a side branch, with the state that its aggregation has left."""
    base = None if isinstance(file, BaseAndDelta) else find_base(model_id)
    # A copy of the version that it began with refers to the base, which is counted already.
    size = 0 if base is not None and base.sha256 == file.sha256 else blobs_of(file)[-1].size_bytes
    _append_version(model_id, version, file, size, now)
    add_state(model_id, version, state)


def _append_version(model_id: str, version: int, file: VersionFile, own_bytes: int, now: datetime) -> None:
    """Stores the next version of a model, which adds so many bytes to what is stored of the model."""
    insert_version(model_id, version, file, now)
    ModelRow.update(version=version).where(ModelRow.model_id == model_id).execute()
    _add_stored_bytes(model_id, own_bytes)


def branch_facts(file: VersionFile, state: AggregationState, problem: str) -> dict[str, Any]:
    """Returns what the audit log has of the file of a version of a side branch.

    Args:
        file: The file.
        state: What its aggregation leaves for the next one.
        problem: Why the updates had no aggregate, so that it is a copy; empty if they had one.
    """
    facts: dict[str, Any] = {"sha256": file.sha256, "size_bytes": file.size_bytes}
    if isinstance(file, BaseAndDelta):
        facts |= {"base_sha256": file.base.sha256, "delta_sha256": file.delta.sha256}
    if state.slots:
        facts["state"] = state.facts
    return facts | ({"problem": problem} if problem else {})


def add_artifact(model_id: str, version: int, artifact: NewArtifact, blob: BlobRef) -> None:
    """Stores an artifact of a version of a model."""
    ArtifactRow.create(
        model_id=model_id,
        version=version,
        kind=artifact.kind,
        **from_blob(blob),
        details=dict(artifact.details),
    )
    _add_stored_bytes(model_id, blob.size_bytes)


def add_state(model_id: str, version: int, state: AggregationState) -> None:
    """Stores what the aggregation that made a version leaves for the next one, as artifacts of the version."""
    for slot, blob in state.slots.items():
        add_artifact(model_id, version, NewArtifact(slot, {STEPS: state.steps[slot]}), blob)


def drop_artifacts(model_id: str, artifacts: Sequence[ArtifactRow]) -> None:
    """Removes artifacts of a model."""
    for artifact in artifacts:
        artifact.delete_instance()
    if artifacts:
        _add_stored_bytes(model_id, -sum(artifact.size_bytes for artifact in artifacts))


def drop_versions(training: TrainingRow, model_id: str) -> None:
    """Drops the files of the versions of a model that a training makes, but does not keep, if they have no tag."""
    spec = to_spec(training.spec)
    if not spec.keep_versions:
        return
    buffering = spec.aggregation.buffering
    # Updates may start from those that are not too old.
    kept = max(spec.keep_versions, 0 if buffering is None else buffering.max_staleness + 1)
    rows = list_untagged_versions(model_id, training.model_version - kept)
    for row in rows:
        append(AuditRecord("version_dropped", training.training_id, model_id, str(row.version)))
        ModelVersionRow.update(stored=False).where(
            ModelVersionRow.model_id == row.model_id, ModelVersionRow.version == row.version
        ).execute()
    if not rows:
        return
    base = find_base(model_id)
    artifacts = artifacts_of(model_id, [row.version for row in rows])
    sizes = [_own_bytes(row, base) for row in rows] + [artifact.size_bytes for artifact in artifacts]
    if base is not None and any(row.delta_sha256 for row in rows) and not has_deltas(model_id):
        sizes.append(base.size_bytes)
        base.delete_instance()
    _add_stored_bytes(model_id, -sum(sizes))


def _own_bytes(row: ModelVersionRow, base: ModelBaseRow | None) -> int:
    """Returns the size of what only a version refers to: its file or its delta, but not the base of its model."""
    if row.delta_sha256 is not None:
        return row.delta_size_bytes or 0
    return 0 if base is not None and base.sha256 == row.sha256 else row.size_bytes


def _add_stored_bytes(model_id: str, size: int) -> None:
    ModelRow.update(stored_bytes=ModelRow.stored_bytes + size).where(ModelRow.model_id == model_id).execute()
