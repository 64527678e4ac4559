"""Changes of models: versions and their tags."""

from datetime import datetime

from fedround_server.domain.model import PINNED, BlobRef, Model, ModelVersion, NewModel
from fedround_server.domain.rounds.kind import NewArtifact
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import record
from fedround_server.store.queries.version import artifacts_of, find_tag, list_untagged_versions
from fedround_server.store.tables.mapping import from_blob, from_manifest, to_model
from fedround_server.store.tables.schema import ArtifactRow, ModelRow, ModelVersionRow, TagRow, TrainingRow


def insert_model(
    model_id: str, owner_id: str, model: NewModel, now: datetime, source: ModelVersion | None = None
) -> Model:
    """Stores a model as version 0."""
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
        stored_bytes=model.blob.size_bytes,
        create_time=now,
    )
    origin = {"source_model_id": row.source_model_id, "source_version": row.source_version}
    record("model_created", row, subject=0, sha256=model.blob.sha256, size_bytes=model.blob.size_bytes, **origin)
    return to_model(row, insert_version(model_id, 0, model.blob, now))


def insert_version(model_id: str, version: int, blob: BlobRef, now: datetime) -> ModelVersionRow:
    """Stores a version of a model."""
    row: ModelVersionRow = ModelVersionRow.create(
        model_id=model_id,
        version=version,
        **from_blob(blob),
        create_time=now,
        stored=True,
    )
    reached("version.inserted")
    return row


def put_tag(model_id: str, version: int, tag: str) -> None:
    """Puts a tag on a version, and removes it from the version that had it, unless several may have it."""
    others = TagRow.delete().where(TagRow.model_id == model_id, TagRow.tag == tag)
    if tag == PINNED:
        others = others.where(TagRow.version == version)
    others.execute()
    row = TagRow.create(model_id=model_id, version=version, tag=tag)
    record("version_tagged", row, subject=version, tag=tag)


def remove_tag(model_id: str, version: int, tag: str) -> None:
    """Removes a tag from a version, if it has it."""
    row = find_tag(model_id, version, tag)
    if row is not None:
        row.delete_instance()
        record("version_untagged", row, subject=version, tag=tag)


def add_version(training: TrainingRow, blob: BlobRef, now: datetime) -> None:
    """Stores the next version of a training's model."""
    training.model_version += 1
    insert_version(training.model_id, training.model_version, blob, now)
    ModelRow.update(version=training.model_version).where(ModelRow.model_id == training.model_id).execute()
    _add_stored_bytes(training.model_id, blob.size_bytes)


def add_artifact(training: TrainingRow, artifact: NewArtifact, blob: BlobRef) -> None:
    """Stores an artifact of the present version of a training's model."""
    ArtifactRow.create(
        model_id=training.model_id,
        version=training.model_version,
        kind=artifact.kind,
        **from_blob(blob),
        details=dict(artifact.details),
    )
    _add_stored_bytes(training.model_id, blob.size_bytes)


def drop_versions(training: TrainingRow, keep_versions: int) -> None:
    """Drops the files of old versions without a tag; 0 keeps all versions."""
    if not keep_versions:
        return
    rows = list_untagged_versions(training.model_id, training.model_version - keep_versions)
    for row in rows:
        record("version_dropped", training, subject=row.version)
        ModelVersionRow.update(stored=False).where(
            ModelVersionRow.model_id == row.model_id, ModelVersionRow.version == row.version
        ).execute()
    if rows:
        artifacts = artifacts_of(training.model_id, [row.version for row in rows])
        sizes = [row.size_bytes for row in rows] + [artifact.size_bytes for artifact in artifacts]
        _add_stored_bytes(training.model_id, -sum(sizes))


def _add_stored_bytes(model_id: str, size: int) -> None:
    ModelRow.update(stored_bytes=ModelRow.stored_bytes + size).where(ModelRow.model_id == model_id).execute()
