"""Reads of models, of their versions, and of what was reported on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peewee import JOIN, ModelSelect

from fedround_server.domain.errors import FieldInvalid, ModelNotFound
from fedround_server.domain.event import ModelInfo
from fedround_server.domain.model import LAST, Model, ModelVersion, VersionView
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.update import Submission
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.row_locks import locked
from fedround_server.store.tables.mapping import to_model, to_version
from fedround_server.store.tables.schema import (
    ArtifactRow,
    ModelRow,
    ModelVersionRow,
    ParticipantRow,
    RoundRow,
    TagRow,
    TrainingRow,
)

# A manifest may have megabytes.
ALL_FIELDS = tuple(ModelRow._meta.sorted_fields)
LISTED = tuple(field for field in ALL_FIELDS if field.name != "manifest")


@compiled
def _version(model_id: str, version: int) -> "ModelSelect[ModelVersionRow]":
    return ModelVersionRow.select().where(ModelVersionRow.model_id == model_id, ModelVersionRow.version == version)


@compiled
def _visible(model_id: str, user_id: str) -> "ModelSelect[ModelRow]":
    return _select_visible(LISTED, model_id, user_id)


@compiled
def _visible_whole(model_id: str, user_id: str) -> "ModelSelect[ModelRow]":
    return _select_visible(ALL_FIELDS, model_id, user_id)


def owned_model(model_id: str, owner_id: str) -> ModelRow:
    """Takes an owner's model for the rest of the transaction."""
    rows = ModelRow.select().where(
        ModelRow.model_id == model_id, ModelRow.owner_id == owner_id, ModelRow.remove_time.is_null()
    )
    row: ModelRow | None = locked(rows).first()
    if row is None:
        raise ModelNotFound(model_id)
    return row


def visible_model(model_id: str, user_id: str, *, whole: bool = False) -> ModelRow:
    """Returns a model that the user owns, or that a training it takes part in works on; unless whole, no manifest."""
    row = (_visible_whole if whole else _visible).first(model_id, user_id)
    if row is None:
        raise ModelNotFound(model_id)
    return row


def _select_visible(fields: tuple[Any, ...], model_id: str, user_id: str) -> "ModelSelect[ModelRow]":
    return (
        ModelRow.select(*fields)
        .join(
            TrainingRow,
            JOIN.LEFT_OUTER,
            on=((TrainingRow.model_id == ModelRow.model_id) & TrainingRow.remove_time.is_null()),
        )
        .join(
            ParticipantRow,
            JOIN.LEFT_OUTER,
            on=(
                (ParticipantRow.training_id == TrainingRow.training_id)
                & (ParticipantRow.user_id == user_id)
                & ParticipantRow.remove_time.is_null()
            ),
        )
        .where(
            ModelRow.model_id == model_id,
            ModelRow.remove_time.is_null(),
            (ModelRow.owner_id == user_id) | ParticipantRow.user_id.is_null(False),
        )
        .limit(1)
    )


def get_version(model_id: str, version: int) -> ModelVersionRow:
    """Returns the row of a version that there is."""
    return _version.one(model_id, version)


def latest_version(row: ModelRow) -> ModelVersionRow:
    """Returns the row of a model's latest version."""
    return get_version(row.model_id, row.version)


def model_info(model_id: str, version: int) -> ModelInfo:
    """Returns a model version by reference."""
    return ModelInfo(model_id, version, to_version(get_version(model_id, version)).blob)


def with_latest(row: ModelRow) -> Model:
    """Returns a model with its latest version."""
    return to_model(row, latest_version(row))


def uploaded_model(owner_id: str, upload_id: str | None) -> Model | None:
    """Returns the model that an upload has made, if any.

    Raises:
        FieldInvalid: That model was removed.
    """
    if upload_id is None:
        return None
    row = ModelRow.get_or_none(ModelRow.owner_id == owner_id, ModelRow.upload_id == upload_id)
    if row is not None and row.remove_time is not None:
        raise FieldInvalid("spec.upload_id", "the model that it made was removed: use a new one")
    return None if row is None else with_latest(row)


def artifacts_of(model_id: str, versions: Sequence[int]) -> list[ArtifactRow]:
    """Returns the artifacts of versions of a model."""
    return list(ArtifactRow.select().where(ArtifactRow.model_id == model_id, ArtifactRow.version.in_(versions)))


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
    return to_version(row, artifacts_of(model.model_id, [wanted]))


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


def version_views(model: ModelRow, rows: Sequence[ModelVersionRow], user_id: str) -> list[VersionView]:
    """Reads versions of a model with their tags, and with the metrics that a user may see."""
    numbers = [row.version for row in rows]
    tags: dict[int, set[str]] = {number: {LAST} if number == model.version else set() for number in numbers}
    for tag in TagRow.select().where(TagRow.model_id == model.model_id, TagRow.version.in_(numbers)):
        tags[tag.version].add(tag.tag)
    artifacts: dict[int, list[ArtifactRow]] = {number: [] for number in numbers}
    for artifact in artifacts_of(model.model_id, numbers):
        artifacts[artifact.version].append(artifact)
    metrics, shown = _metrics(model.model_id, numbers), shown_metrics(model, user_id)
    return [
        VersionView(
            to_version(row, artifacts[row.version]),
            tuple(sorted(tags[row.version])),
            shown(metrics.get(row.version, {})),
        )
        for row in rows
    ]


def shown_metrics(model: ModelRow, user_id: str) -> Callable[[Mapping[str, float]], dict[str, float]]:
    """Returns what picks those of a round's means that a user may see.

    The owner sees all. To participants the mean of what one of them reported alone would tell that one's own value:
    they see what the training asked for.
    """
    if model.owner_id == user_id:
        return dict
    training = TrainingRow.get_or_none(TrainingRow.model_id == model.model_id)
    asked = frozenset(() if training is None else training.spec["metric_names"])
    return lambda means: {name: value for name, value in means.items() if name in asked}


def _metrics(model_id: str, versions: Sequence[int]) -> dict[int, Mapping[str, float]]:
    reporting = [kind.name for kind in KINDS.values() if kind.submission is Submission.REPORT]
    rounds = (
        RoundRow.select(RoundRow.model_version, RoundRow.metrics)
        .join(TrainingRow, on=(TrainingRow.training_id == RoundRow.training_id))
        .where(
            TrainingRow.model_id == model_id,
            RoundRow.kind.in_(reporting),
            RoundRow.model_version.in_(versions),
            RoundRow.metrics.is_null(False),
        )
    )
    return {row.model_version: row.metrics for row in rounds}
