"""Changes of models: versions and their tags."""

from datetime import datetime

from fedround_server.domain.model import PINNED, BlobRef, Model, ModelVersion, NewModel
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import record
from fedround_server.store.tables.mapping import from_manifest, to_model
from fedround_server.store.tables.schema import ModelRow, ModelVersionRow, TagRow


def insert_model(
    model_id: str, owner_id: str, model: NewModel, now: datetime, source: ModelVersion | None = None
) -> Model:
    """Stores a model as version 0; inside a transaction."""
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
        version=0,
        stored_bytes=model.blob.size_bytes,
        create_time=now,
        remove_time=None,
    )
    origin = {"source_model_id": row.source_model_id, "source_version": row.source_version}
    record("model_created", row, subject=0, sha256=model.blob.sha256, size_bytes=model.blob.size_bytes, **origin)
    return to_model(row, insert_version(model_id, 0, model.blob, now))


def insert_version(model_id: str, version: int, blob: BlobRef, now: datetime) -> ModelVersionRow:
    """Stores a version of a model."""
    row: ModelVersionRow = ModelVersionRow.create(
        model_id=model_id,
        version=version,
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        create_time=now,
        stored=True,
        posterior_sha256=None,
        posterior_size_bytes=0,
        posterior_rank=0,
    )
    reached("version.inserted")
    return row


def put_tag(model_id: str, version: int, tag: str) -> None:
    """Puts a tag on a version, and takes it from the one that had it, unless many may have it."""
    others = TagRow.delete().where(TagRow.model_id == model_id, TagRow.tag == tag)
    if tag == PINNED:
        others = others.where(TagRow.version == version)
    others.execute()
    row = TagRow.create(model_id=model_id, version=version, tag=tag)
    record("version_tagged", row, subject=version, tag=tag)


def remove_tag(model_id: str, version: int, tag: str) -> None:
    """Takes a tag from a version, if it carries it."""
    row = TagRow.get_or_none(TagRow.model_id == model_id, TagRow.version == version, TagRow.tag == tag)
    if row is not None:
        row.delete_instance()
        record("version_untagged", row, subject=version, tag=tag)
