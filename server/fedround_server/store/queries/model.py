"""Reads of models."""

from datetime import datetime
from typing import Any

from peewee import JOIN, ModelSelect

from fedround_server.domain.errors import FieldInvalid, ModelNotFound
from fedround_server.domain.model import Model
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.rows import locked
from fedround_server.store.queries.shadow import find_shadow
from fedround_server.store.queries.version import known_version
from fedround_server.store.tables.mapping import to_model
from fedround_server.store.tables.schema import ModelRow, ParticipantRow, TrainingRow

# A manifest may have megabytes.
ALL_FIELDS = tuple(ModelRow._meta.sorted_fields)
LISTED = tuple(field for field in ALL_FIELDS if field.name != "manifest")


# Each participant downloads the version that it sends an update to.
@compiled
def _visible(model_id: str, user_id: str) -> "ModelSelect[ModelRow]":
    return _select_visible(LISTED, model_id, user_id)


def get_model(model_id: str) -> ModelRow:
    """Returns a model that is known to exist."""
    row: ModelRow = ModelRow.get(ModelRow.model_id == model_id)
    return row


def find_owned_model(model_id: str, owner_id: str) -> ModelRow:
    """Returns a model of an owner.

    Raises:
        ModelNotFound: The user owns no such model.
    """
    return _found(model_id, _owned(model_id, owner_id).first())


def lock_owned_model(model_id: str, owner_id: str) -> ModelRow:
    """Returns a model like `find_owned_model`, and locks it until the end of the transaction."""
    return _found(model_id, locked(_owned(model_id, owner_id)).first())


def lock_models_of_owner(owner_id: str) -> list[ModelRow]:
    """Returns the models of an owner without their manifests, and locks them until the end of the transaction."""
    rows = ModelRow.select(*LISTED).where(ModelRow.owner_id == owner_id, ModelRow.remove_time.is_null())
    return list(locked(rows.order_by(ModelRow.model_id)))


def visible_model(model_id: str, user_id: str, *, whole: bool = False) -> ModelRow:
    """Returns a model that the user owns, or that a training it takes part in works on; unless whole, no manifest.

    Raises:
        ModelNotFound: There is no such model for the user.
    """
    row = _select_visible(ALL_FIELDS, model_id, user_id).first() if whole else _visible.first(model_id, user_id)
    return _found(model_id, row)


def find_owner_of_trained(model_id: str) -> str | None:
    """Returns the owner of a model that a training works or worked on, or a shadow aggregation of one.

    None if there is no such model, or if its training is removed.
    """
    shadow = find_shadow(model_id)
    of_training = TrainingRow.model_id == model_id if shadow is None else TrainingRow.training_id == shadow.training_id
    row: TrainingRow | None = (
        TrainingRow.select(TrainingRow.actor_id).where(of_training, TrainingRow.remove_time.is_null()).first()
    )
    # Only the owner of a model trains it.
    return None if row is None else str(row.actor_id)


def with_latest(row: ModelRow) -> Model:
    """Returns a model with its latest version."""
    return to_model(row, known_version(row.model_id, row.version))


def uploaded_model(owner_id: str, upload_id: str | None, field: str = "spec.upload_id") -> Model | None:
    """Returns the model that an upload, or another request with an id, has made, if any; errors name the field.

    Raises:
        FieldInvalid: That model was removed.
    """
    if upload_id is None:
        return None
    row = ModelRow.get_or_none(ModelRow.owner_id == owner_id, ModelRow.upload_id == upload_id)
    if row is not None and row.remove_time is not None:
        raise FieldInvalid(field, "the model that it made was removed: use a new one")
    return None if row is None else with_latest(row)


def page_models(owner_id: str, before: tuple[datetime, str] | None, limit: int) -> list[Model]:
    """Returns an owner's models, the newest first, behind a (create_time, model_id), without their manifests."""
    rows = ModelRow.select(*LISTED).where(ModelRow.owner_id == owner_id, ModelRow.remove_time.is_null())
    if before is not None:
        time, model_id = before
        rows = rows.where(
            (ModelRow.create_time < time) | ((ModelRow.create_time == time) & (ModelRow.model_id < model_id))
        )
    newest_first = rows.order_by(ModelRow.create_time.desc(), ModelRow.model_id.desc()).limit(limit)
    return [with_latest(row) for row in newest_first]


def _owned(model_id: str, owner_id: str) -> "ModelSelect[ModelRow]":
    return ModelRow.select().where(
        ModelRow.model_id == model_id, ModelRow.owner_id == owner_id, ModelRow.remove_time.is_null()
    )


def _found(model_id: str, row: ModelRow | None) -> ModelRow:
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
