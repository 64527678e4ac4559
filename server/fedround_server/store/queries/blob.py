"""Reads of the digests of files."""

from collections.abc import Callable, Collection
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


def needed_digests(digests: Collection[str] | None) -> set[str]:
    """Returns which digests belong to files of versions, bases, artifacts or updates that are not removed.

    Args:
        digests: The digests to look up; None for all.
    """
    rows = _needed(lambda digest: digest.is_null(False) if digests is None else digest.in_(digests))
    return {digest for some in rows for digest, _ in some.distinct().tuples()}


def page_needed_files(after: str, limit: int) -> list[tuple[str, int]]:
    """Returns the digests and the sizes of needed files whose digests come after another one, in their order."""
    found: set[tuple[str, int]] = set()
    for (digest, size), some in zip(_COLUMNS, _needed(lambda digest: digest > after), strict=True):
        # Each may have the first ones of all.
        found |= set(some.distinct().order_by(digest, size).limit(limit).tuples())
    return sorted(found)[:limit]


_COLUMNS = (
    (ModelVersionRow.sha256, ModelVersionRow.size_bytes),
    (ModelVersionRow.delta_sha256, ModelVersionRow.delta_size_bytes),
    (ModelBaseRow.sha256, ModelBaseRow.size_bytes),
    (ArtifactRow.sha256, ArtifactRow.size_bytes),
    (UpdateRow.sha256, UpdateRow.size_bytes),
)
"""Digest and size of each file that a row may refer to."""


def _needed(condition: Callable[[Any], Any]) -> tuple["ModelSelect[Any]", ...]:
    """Returns the queries of the digests and sizes of needed files, one for each of `_COLUMNS`, by their digest."""
    whole, delta, base, artifact, update = _COLUMNS
    present = ModelRow.remove_time.is_null() & ModelVersionRow.stored
    versions = (
        ModelVersionRow.select(*whole)
        .join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
        # The whole file of a version with a delta is not stored.
        .where(present, condition(whole[0]), ModelVersionRow.delta_sha256.is_null())
    )
    deltas = (
        ModelVersionRow.select(*delta)
        .join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
        .where(present, condition(delta[0]))
    )
    bases = (
        ModelBaseRow.select(*base)
        .join(ModelRow, on=(ModelRow.model_id == ModelBaseRow.model_id))
        .where(ModelRow.remove_time.is_null(), condition(base[0]))
    )
    same = (ModelVersionRow.model_id == ArtifactRow.model_id) & (ModelVersionRow.version == ArtifactRow.version)
    artifacts = (
        ArtifactRow.select(*artifact)
        .join(ModelVersionRow, on=same)
        .join(ModelRow, on=(ModelRow.model_id == ArtifactRow.model_id))
        .where(present, condition(artifact[0]))
    )
    updates = (
        UpdateRow.select(*update)
        .join(TrainingRow, on=(TrainingRow.training_id == UpdateRow.training_id))
        .where(TrainingRow.remove_time.is_null(), UpdateRow.stored, condition(update[0]))
    )
    return versions, deltas, bases, artifacts, updates
