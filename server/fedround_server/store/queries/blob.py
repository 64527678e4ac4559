"""Reads of the digests of files."""

from collections.abc import Collection
from typing import Any

from peewee import Expression, Field, ModelSelect

from fedround_server.store.tables.schema import (
    ArtifactRow,
    ModelBaseRow,
    ModelRow,
    ModelVersionRow,
    TrainingRow,
    UpdateRow,
)


def needed_digests(digests: Collection[str] | None) -> set[str]:
    """Returns which digests belong to files of versions, bases, artifacts or updates that are not removed.

    Args:
        digests: The digests to look up; None for all.
    """

    def among(column: Field) -> Expression | bool:
        return column.is_null(False) if digests is None else column.in_(digests)

    present = ModelRow.remove_time.is_null() & ModelVersionRow.stored
    versions = (
        ModelVersionRow.select(ModelVersionRow.sha256)
        .join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
        # The whole file of a version with a delta is not stored.
        .where(present, among(ModelVersionRow.sha256), ModelVersionRow.delta_sha256.is_null())
    )
    deltas = (
        ModelVersionRow.select(ModelVersionRow.delta_sha256)
        .join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
        .where(present, among(ModelVersionRow.delta_sha256))
    )
    bases = (
        ModelBaseRow.select(ModelBaseRow.sha256)
        .join(ModelRow, on=(ModelRow.model_id == ModelBaseRow.model_id))
        .where(ModelRow.remove_time.is_null(), among(ModelBaseRow.sha256))
    )
    same = (ModelVersionRow.model_id == ArtifactRow.model_id) & (ModelVersionRow.version == ArtifactRow.version)
    artifacts = (
        ArtifactRow.select(ArtifactRow.sha256)
        .join(ModelVersionRow, on=same)
        .join(ModelRow, on=(ModelRow.model_id == ArtifactRow.model_id))
        .where(present, among(ArtifactRow.sha256))
    )
    updates = (
        UpdateRow.select(UpdateRow.sha256)
        .join(TrainingRow, on=(TrainingRow.training_id == UpdateRow.training_id))
        .where(TrainingRow.remove_time.is_null(), UpdateRow.stored, among(UpdateRow.sha256))
    )
    needing: tuple[ModelSelect[Any], ...] = (versions, deltas, bases, artifacts, updates)
    return {digest for rows in needing for (digest,) in rows.distinct().tuples()}
