"""Verbs about models and their versions."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from peewee import ModelSelect

from fedround_server.domain.errors import ModelInUse, Quota, TokenInvalid
from fedround_server.domain.model import Model, ModelVersion, NewModel, VersionView
from fedround_server.domain.quota import Quotas
from fedround_server.domain.report import MetricReport
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.uncertainty import NoUncertainty, Uncertainty
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.run import Database, verb
from fedround_server.store.queries.model import (
    LISTED,
    owned_model,
    shown_metrics,
    stored_version,
    tagged_version,
    uploaded_model,
    version_views,
    visible_model,
    with_latest,
)
from fedround_server.store.queries.quota import check_stored_bytes
from fedround_server.store.queries.user import lock_user
from fedround_server.store.tables.mapping import ENDED, to_spec
from fedround_server.store.tables.schema import (
    ArtifactRow,
    ModelRow,
    ModelVersionRow,
    RoundRow,
    TagRow,
    TrainingRow,
    UpdateRow,
)
from fedround_server.store.transitions.versions import insert_model, put_tag, remove_tag

MAX_TAGS = 100


@dataclass(frozen=True, slots=True)
class ModelVerbs:
    """Transactions about models."""

    database: Database

    @verb
    def prepare(self, owner_id: str, upload_id: str | None, size: int, quotas: Quotas) -> Model | None:
        """Checks whether `create` would succeed, before a file of a size in bytes (0 if unknown) is received.

        Returns:
            The model that the upload has made before.

        Raises:
            FieldInvalid: It was removed.
            Quota: The owner's files have too many bytes.
        """
        made = uploaded_model(owner_id, upload_id)
        if made is None:
            check_stored_bytes(owner_id, quotas, size)
        return made

    @verb
    def create(self, model_id: str, owner_id: str, model: NewModel, quotas: Quotas, now: datetime) -> Model:
        """Stores a model as version 0, unless its upload has made one.

        Raises:
            TokenInvalid: The owner was removed.
            Quota: The owner's files have too many bytes.
        """
        if not lock_user(owner_id):
            raise TokenInvalid
        made = uploaded_model(owner_id, model.upload_id)
        if made is None:
            made = insert_model(model_id, owner_id, model, now)
            check_stored_bytes(owner_id, quotas)
        return made

    @verb
    def get(self, model_id: str, user_id: str) -> Model:
        """Returns a model of the user's, or of a training that the user takes part in.

        Raises:
            ModelNotFound: There is none.
        """
        return with_latest(visible_model(model_id, user_id, whole=True))

    @verb
    def get_version(self, model_id: str, version: int | None, user_id: str, tag: str = "") -> ModelVersion:
        """Returns a version whose file is here, of a model like `get`.

        Args:
            model_id: The model.
            version: The version; None for the one with the tag, or else the latest.
            user_id: Who asks.
            tag: A tag of the version.

        Raises:
            ModelNotFound: There is no such model, or no such version.
        """
        row = visible_model(model_id, user_id)
        return stored_version(row, tagged_version(row, tag) if tag else version)

    @verb
    def page_versions(self, model_id: str, user_id: str, before: int | None, limit: int) -> list[VersionView]:
        """Returns the versions of a model like `get`, the newest first, below a version.

        Raises:
            ModelNotFound: There is no such model.
        """
        row = visible_model(model_id, user_id)
        versions = ModelVersionRow.select().where(ModelVersionRow.model_id == model_id)
        if before is not None:
            versions = versions.where(ModelVersionRow.version < before)
        return version_views(row, list(versions.order_by(ModelVersionRow.version.desc()).limit(limit)), user_id)

    @verb
    def tag(self, model_id: str, version: int, tag: str, owner_id: str, *, remove: bool) -> VersionView:
        """Puts a tag on a version that is here, or takes it away.

        Raises:
            ModelNotFound: The user owns no such model, or it has no such version.
            Quota: The version carries as many tags as it may.
        """
        row = owned_model(model_id, owner_id)
        stored_version(row, version)
        if remove:
            remove_tag(model_id, version, tag)
        else:
            put_tag(model_id, version, tag)
            if TagRow.select().where(TagRow.model_id == model_id, TagRow.version == version).count() > MAX_TAGS:
                raise Quota(f"version {version} carries {MAX_TAGS} tags, as many as it may: take one away first")
        found = ModelVersionRow.get(ModelVersionRow.model_id == model_id, ModelVersionRow.version == version)
        return version_views(row, [found], owner_id)[0]

    @verb
    def page(self, owner_id: str, before: tuple[datetime, str] | None, limit: int) -> list[Model]:
        """Returns the owner's models, the newest first, behind a (create_time, model_id), without their manifests."""
        rows = ModelRow.select(*LISTED).where(ModelRow.owner_id == owner_id, ModelRow.remove_time.is_null())
        if before is not None:
            time, model_id = before
            rows = rows.where(
                (ModelRow.create_time < time) | ((ModelRow.create_time == time) & (ModelRow.model_id < model_id))
            )
        newest_first = rows.order_by(ModelRow.create_time.desc(), ModelRow.model_id.desc()).limit(limit)
        return [with_latest(row) for row in newest_first]

    @verb
    def remove(self, model_id: str, owner_id: str, now: datetime) -> None:
        """Removes a model.

        Raises:
            ModelNotFound: The user owns no such model.
            ModelInUse: A training that is not ended needs it.
        """
        row = owned_model(model_id, owner_id)
        needed_by = (
            TrainingRow.select()
            .where(
                TrainingRow.model_id == model_id,
                TrainingRow.remove_time.is_null(),
                TrainingRow.state.not_in(ENDED),
            )
            .first()
        )
        if needed_by is not None:
            raise ModelInUse(
                f"the training {needed_by.training_id} needs the model {model_id}: wait for its end or remove it",
                training_id=needed_by.training_id,
            )
        row.remove_time = now
        row.save()
        record("model_removed", row)

    @verb
    def metrics(self, model_id: str, user_id: str, after: tuple[int, str], limit: int) -> list[MetricReport]:
        """Returns the metrics reported on a model, by round and reporter, a round's aggregated ones first.

        The owner sees everything, a participant its own and the aggregated values that the training asked for.

        Args:
            model_id: The model.
            user_id: Who asks.
            after: Round and reporter of the report to go on behind; the aggregated ones have the reporter "".
            limit: How many.

        Raises:
            ModelNotFound: There is no such model for the user.
        """
        model = visible_model(model_id, user_id)
        shown = shown_metrics(model, user_id)
        # A model that was trained once is copied for every other training.
        training = TrainingRow.get_or_none(TrainingRow.model_id == model_id)
        if training is None:
            return []
        number, reporter = after
        done = (RoundRow.training_id == training.training_id) & RoundRow.metrics.is_null(False)
        rows = RoundRow.select().where(done, RoundRow.number >= number).order_by(RoundRow.number)
        # Each of them has an aggregated report, so together they have all that the page needs.
        rounds = {row.number: row for row in rows.limit(limit + 1)}
        updates = UpdateRow.select().where(
            UpdateRow.training_id == training.training_id,
            UpdateRow.number.in_(list(rounds)),
            UpdateRow.metrics != {},
            (UpdateRow.number > number) | ((UpdateRow.number == number) & (UpdateRow.user_id > reporter)),
        )
        if model.owner_id != user_id:
            updates = updates.where(UpdateRow.user_id == user_id)
        means = [row for row in rounds.values() if row.number > number]
        reports = [_report(row, None, row.num_examples, shown(row.metrics)) for row in means]
        reports += [
            _report(rounds[update.number], update.user_id, update.num_examples, update.metrics)
            for update in updates.order_by(UpdateRow.number, UpdateRow.user_id).limit(limit)
        ]
        # Sorting keeps the order within a round.
        return sorted(reports, key=lambda report: report.round)[:limit]

    @verb
    def predicts_with(self, model_id: str, user_id: str) -> tuple[str, Uncertainty]:
        """Returns the architecture of a model like `get`, and the uncertainty method of the training that works on it.

        Raises:
            ModelNotFound: There is no such model.
        """
        model = visible_model(model_id, user_id)
        row = TrainingRow.get_or_none(TrainingRow.model_id == model_id)
        return model.architecture, NoUncertainty() if row is None else to_spec(row.spec).uncertainty

    @verb
    def digests_in_use(self, digests: Collection[str]) -> set[str]:
        """Returns which of some digests (a few hundred at most) belong to files that are still needed."""
        present = ModelRow.remove_time.is_null() & ModelVersionRow.stored
        versions = (
            ModelVersionRow.select(ModelVersionRow.sha256)
            .join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
            .where(present, ModelVersionRow.sha256.in_(digests))
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
            .where(TrainingRow.remove_time.is_null(), UpdateRow.sha256.in_(digests))
        )
        needing: tuple[ModelSelect[Any], ...] = (versions, artifacts, updates)
        return {digest for rows in needing for (digest,) in rows.distinct().tuples()}


def _report(row: RoundRow, reporter_id: str | None, num_examples: int, metrics: dict[str, float]) -> MetricReport:
    return MetricReport(
        training_id=row.training_id,
        round=row.number,
        kind=KINDS[row.kind].public_name,
        model_version=row.model_version,
        reporter_id=reporter_id,
        num_examples=num_examples,
        metrics=metrics,
    )
