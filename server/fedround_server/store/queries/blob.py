"""Reads of the digests of files."""

from collections.abc import Collection
from typing import Any

from peewee import ModelSelect

from fedround_server.store.tables.schema import (
    ArtifactRow,
    ModelBaseRow,
    ModelRow,
    ModelVersionRow,
    TrainingRow,
    UpdateRow,
)


def needed_digests(digests: Collection[str]) -> set[str]:
    """Returns which of some digests belong to files of versions, bases, artifacts or updates that are not removed."""
    present = ModelRow.remove_time.is_null() & ModelVersionRow.stored
    versions = (
        ModelVersionRow.select(ModelVersionRow.sha256)
        .join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
        # The whole file of a version with a delta is not stored.
        .where(present, ModelVersionRow.sha256.in_(digests), ModelVersionRow.delta_sha256.is_null())
    )
    deltas = (
        ModelVersionRow.select(ModelVersionRow.delta_sha256)
        .join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
        .where(present, ModelVersionRow.delta_sha256.in_(digests))
    )
    bases = (
        ModelBaseRow.select(ModelBaseRow.sha256)
        .join(ModelRow, on=(ModelRow.model_id == ModelBaseRow.model_id))
        .where(ModelRow.remove_time.is_null(), ModelBaseRow.sha256.in_(digests))
    )
    same = (ModelVersionRow.model_id == ArtifactRow.model_id) & (ModelVersionRow.version == ArtifactRow.version)
    artifacts = (
        ArtifactRow.select(ArtifactRow.sha256)
        .join(ModelVersionRow, on=same)
        .join(ModelRow, on=(ModelRow.model_id == ArtifactRow.model_id))
        .where(present, ArtifactRow.sha256.in_(digests))
    )
    updates = (
        UpdateRow.select(UpdateRow.sha256)
        .join(TrainingRow, on=(TrainingRow.training_id == UpdateRow.training_id))
        .where(TrainingRow.remove_time.is_null(), UpdateRow.stored, UpdateRow.sha256.in_(digests))
    )
    needing: tuple[ModelSelect[Any], ...] = (versions, deltas, bases, artifacts, updates)
    return {digest for rows in needing for (digest,) in rows.distinct().tuples()}
