"""Reads of the versions of models, of their tags and artifacts."""

from collections.abc import Collection, Iterable, Sequence

from peewee import ModelSelect

from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.domain.aggregation import NO_STATE, STEPS, AggregationState
from fedround_server.domain.errors import FieldInvalid, ModelNotFound
from fedround_server.domain.event import ModelInfo
from fedround_server.domain.model import LAST, ModelVersion, VersionFile, VersionView
from fedround_server.domain.training import TrainingSpec
from fedround_server.domain.update import Update
from fedround_server.store.db.compiled import compiled, in_array
from fedround_server.store.queries.metrics import shown_metrics, version_metrics
from fedround_server.store.queries.training import find_training_of_model
from fedround_server.store.tables.mapping import to_blob, to_spec, to_version, to_version_file
from fedround_server.store.tables.schema import ArtifactRow, ModelBaseRow, ModelRow, ModelVersionRow, TagRow


@compiled
def _version(model_id: str, version: int) -> "ModelSelect[ModelVersionRow]":
    return ModelVersionRow.select().where(ModelVersionRow.model_id == model_id, ModelVersionRow.version == version)


def get_version(model_id: str, version: int) -> ModelVersionRow:
    """Returns a version that is known to exist."""
    return _version.one(model_id, version)


@compiled
def _base(model_id: str) -> "ModelSelect[ModelBaseRow]":
    return ModelBaseRow.select().where(ModelBaseRow.model_id == model_id)


def find_base(model_id: str) -> ModelBaseRow | None:
    """Returns the base of a model, if versions of it are stored as deltas."""
    return _base.first(model_id)


def has_deltas(model_id: str) -> bool:
    """Returns whether a version of a model that is stored is a delta."""
    deltas = ModelVersionRow.select().where(
        ModelVersionRow.model_id == model_id, ModelVersionRow.stored, ModelVersionRow.delta_sha256.is_null(False)
    )
    # The latest ones are, unless a training without a selection makes whole versions.
    return deltas.order_by(ModelVersionRow.version.desc()).first() is not None


def version_file(row: ModelVersionRow) -> VersionFile:
    """Returns the file of a version."""
    return to_version_file(row, None if row.delta_sha256 is None else find_base(row.model_id))


def model_info(model_id: str, version: int) -> ModelInfo:
    """Returns a model version by reference."""
    return ModelInfo(model_id, version, version_file(get_version(model_id, version)))


def known_version(model_id: str, version: int) -> ModelVersion:
    """Returns a version that is known to exist, without its artifacts."""
    row = get_version(model_id, version)
    return to_version(row, None if row.delta_sha256 is None else find_base(model_id))


def base_versions(model_id: str, version: int, updates: Iterable[Update]) -> list[ModelVersion]:
    """Returns the versions other than that of their round that updates were trained from, in order."""
    found = {update.base_version for update in updates if update.base_version is not None}
    return [known_version(model_id, base) for base in sorted(found - {version})]


def stored_version(model: ModelRow, version: int | None) -> ModelVersion:
    """Returns a version whose file is here, by default the latest.

    Raises:
        ModelNotFound: There is no such version, or it lost its file.
    """
    wanted = model.version if version is None else version
    row = _version.first(model.model_id, wanted)
    if row is None:
        raise ModelNotFound(f"{model.model_id} in version {wanted} (the latest is {model.version})")
    if not row.stored:
        raise ModelNotFound(f"{model.model_id} in version {wanted} (its file was dropped by keep_versions)")
    base = None if row.delta_sha256 is None else find_base(model.model_id)
    return to_version(row, base, artifacts_of(model.model_id, [wanted]))


def first_version(model: ModelRow, spec: TrainingSpec) -> ModelVersion:
    """Returns the version of a stored model that a training starts from.

    Raises:
        ModelNotFound: There is no such version, or it lost its file.
        FieldInvalid: It is no model.
    """
    start = stored_version(model, spec.model_version)
    made = find_training_of_model(model.model_id) if start.version else None
    if made is not None and isinstance(to_spec(made.spec).aggregation.rule, PartialSum):
        raise FieldInvalid(
            "spec.model_id",
            f"version {start.version} of it is a sum of updates (partial_sum), which is no model: train version 0",
        )
    return start


def tagged_version(model: ModelRow, tag: str) -> int:
    """Returns the latest version that carries a tag.

    Raises:
        ModelNotFound: None does.
    """
    if tag == LAST:
        return int(model.version)
    row = (
        TagRow.select()
        .where(TagRow.model_id == model.model_id, TagRow.tag == tag)
        .order_by(TagRow.version.desc())
        .first()
    )
    if row is None:
        raise ModelNotFound(f"{model.model_id} in a version tagged {tag}")
    return int(row.version)


def page_versions(model_id: str, before: int | None, limit: int) -> list[ModelVersionRow]:
    """Returns the versions of a model, the newest first, below a version."""
    versions = ModelVersionRow.select().where(ModelVersionRow.model_id == model_id)
    if before is not None:
        versions = versions.where(ModelVersionRow.version < before)
    return list(versions.order_by(ModelVersionRow.version.desc()).limit(limit))


def list_untagged_versions(model_id: str, until: int) -> list[ModelVersionRow]:
    """Returns the versions up to one that have no tag and whose file is here, the oldest first."""
    tagged = TagRow.select(TagRow.version).where(TagRow.model_id == model_id)
    rows = ModelVersionRow.select().where(
        ModelVersionRow.model_id == model_id,
        ModelVersionRow.version <= until,
        ModelVersionRow.stored,
        ModelVersionRow.version.not_in(tagged),
    )
    return list(rows.order_by(ModelVersionRow.version))


def find_tag(model_id: str, version: int, tag: str) -> TagRow | None:
    """Returns a tag of a version."""
    row: TagRow | None = TagRow.get_or_none(TagRow.model_id == model_id, TagRow.version == version, TagRow.tag == tag)
    return row


def count_tags(model_id: str, version: int) -> int:
    """Returns how many tags a version carries."""
    return int(TagRow.select().where(TagRow.model_id == model_id, TagRow.version == version).count())


@compiled
def _artifacts(model_id: str, versions: Collection[int]) -> "ModelSelect[ArtifactRow]":
    return ArtifactRow.select().where(ArtifactRow.model_id == model_id, in_array(ArtifactRow.version, versions))


def artifacts_of(model_id: str, versions: Collection[int]) -> list[ArtifactRow]:
    """Returns the artifacts of versions of a model."""
    return _artifacts.all(model_id, versions)


def aggregation_state(model_id: str, version: int, slots: Collection[str]) -> AggregationState:
    """Returns what the aggregation that made a version has left in some slots."""
    if not slots:
        return NO_STATE
    found = [artifact for artifact in artifacts_of(model_id, [version]) if artifact.kind in slots]
    steps = {artifact.kind: int(artifact.details[STEPS]) for artifact in found}
    return AggregationState({artifact.kind: to_blob(artifact) for artifact in found}, steps)


def version_views(model: ModelRow, rows: Sequence[ModelVersionRow], user_id: str) -> list[VersionView]:
    """Reads versions of a model with their tags, and with the metrics that a user may see."""
    numbers = [row.version for row in rows]
    tags: dict[int, set[str]] = {number: {LAST} if number == model.version else set() for number in numbers}
    for tag in TagRow.select().where(TagRow.model_id == model.model_id, TagRow.version.in_(numbers)):
        tags[tag.version].add(tag.tag)
    artifacts: dict[int, list[ArtifactRow]] = {number: [] for number in numbers}
    for artifact in artifacts_of(model.model_id, numbers):
        artifacts[artifact.version].append(artifact)
    base = find_base(model.model_id) if any(row.delta_sha256 is not None for row in rows) else None
    metrics, shown = version_metrics(model.model_id, numbers), shown_metrics(model, user_id)
    return [
        VersionView(
            to_version(row, base, artifacts[row.version]),
            tuple(sorted(tags[row.version])),
            shown(metrics.get(row.version, {})),
        )
        for row in rows
    ]
