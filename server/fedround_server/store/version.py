"""Steps about versions of models and their tags; each runs inside a verb's transaction."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from peewee import ModelSelect

from fedround_server.domain.errors import ModelNotFound
from fedround_server.domain.model import LAST, PINNED, BlobRef, ModelVersion, VersionView
from fedround_server.domain.round import RoundKind
from fedround_server.failpoints import reached
from fedround_server.store.noting import note
from fedround_server.store.prepared import prepared
from fedround_server.store.rows import to_version
from fedround_server.store.schema import ModelRow, ModelVersionRow, RoundRow, TagRow, TrainingRow


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


@prepared
def _version(model_id: str, version: int) -> "ModelSelect[ModelVersionRow]":
    return ModelVersionRow.select().where(ModelVersionRow.model_id == model_id, ModelVersionRow.version == version)


def get_version(model_id: str, version: int) -> ModelVersionRow:
    """Returns the row of a version that there is."""
    return _version.one(model_id, version)


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
    return to_version(row)


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


def put_tag(model_id: str, version: int, tag: str) -> None:
    """Puts a tag on a version, and takes it from the one that had it, unless many may have it."""
    others = TagRow.delete().where(TagRow.model_id == model_id, TagRow.tag == tag)
    if tag == PINNED:
        others = others.where(TagRow.version == version)
    others.execute()
    row = TagRow.create(model_id=model_id, version=version, tag=tag)
    note("version_tagged", row, subject=version, tag=tag)


def remove_tag(model_id: str, version: int, tag: str) -> None:
    """Takes a tag from a version, if it carries it."""
    row = TagRow.get_or_none(TagRow.model_id == model_id, TagRow.version == version, TagRow.tag == tag)
    if row is not None:
        row.delete_instance()
        note("version_untagged", row, subject=version, tag=tag)


def views(model: ModelRow, rows: Sequence[ModelVersionRow], user_id: str) -> list[VersionView]:
    """Reads versions of a model with their tags, and with the metrics that a user may see."""
    numbers = [row.version for row in rows]
    tags: dict[int, set[str]] = {number: {LAST} if number == model.version else set() for number in numbers}
    for tag in TagRow.select().where(TagRow.model_id == model.model_id, TagRow.version.in_(numbers)):
        tags[tag.version].add(tag.tag)
    metrics, shown = _metrics(model.model_id, numbers), shown_metrics(model, user_id)
    return [
        VersionView(to_version(row), tuple(sorted(tags[row.version])), shown(metrics.get(row.version, {})))
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
    rounds = (
        RoundRow.select(RoundRow.model_version, RoundRow.metrics)
        .join(TrainingRow, on=(TrainingRow.training_id == RoundRow.training_id))
        .where(
            TrainingRow.model_id == model_id,
            RoundRow.kind == RoundKind.EVALUATE.value,
            RoundRow.model_version.in_(versions),
            RoundRow.metrics.is_null(False),
        )
    )
    return {row.model_version: row.metrics for row in rounds}
