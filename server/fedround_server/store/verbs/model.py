"""Verbs about models and their versions."""

from collections.abc import Collection
from datetime import datetime

from fedround_server.domain.errors import ModelInUse, Quota, TokenInvalid
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import BlobRef, Model, ModelVersion, NewModel, VersionView
from fedround_server.domain.report import MetricReport
from fedround_server.domain.uncertainty import NoUncertainty, Uncertainty
from fedround_server.store.db.run import Verbs, snapshot, verb
from fedround_server.store.queries.blob import needed_digests
from fedround_server.store.queries.metrics import page_reports
from fedround_server.store.queries.model import (
    lock_owned_model,
    page_models,
    uploaded_model,
    visible_model,
    with_latest,
)
from fedround_server.store.queries.quota import check_stored_bytes
from fedround_server.store.queries.training import find_training_of_model, find_training_that_needs
from fedround_server.store.queries.user import lock_user
from fedround_server.store.queries.version import (
    count_tags,
    get_version,
    page_versions,
    stored_version,
    tagged_version,
    version_views,
)
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import (
    ArtifactRow,
    AssignmentRow,
    ModelBaseRow,
    ModelVersionRow,
    UpdateRow,
)
from fedround_server.store.transitions.versions import insert_model, put_tag, remove_model, remove_tag

MAX_TAGS = 100


class ModelVerbs(Verbs):
    """Transactions about models."""

    @verb
    def prepare(self, owner_id: str, upload_id: str | None, size: int, quotas: Quotas) -> Model | None:
        """Checks whether `create` would succeed, before a file of a size in bytes (0 if unknown) is received.

        Returns the model that the upload has made before, if any.

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

    @snapshot
    def get(self, model_id: str, user_id: str) -> Model:
        """Returns a model of the user's, or of a training that the user takes part in.

        Raises:
            ModelNotFound: There is none.
        """
        return with_latest(visible_model(model_id, user_id, whole=True))

    @verb
    def get_version(self, model_id: str, version: int | None, user_id: str, tag: str = "") -> ModelVersion:
        """Returns a version whose file is here, of a model like `get`: the tagged one, else by number, else the latest.

        Raises:
            ModelNotFound: There is no such model, or no such version.
        """
        row = visible_model(model_id, user_id)
        return stored_version(row, tagged_version(row, tag) if tag else version)

    @snapshot
    def page_versions(self, model_id: str, user_id: str, before: int | None, limit: int) -> list[VersionView]:
        """Returns the versions of a model like `get`, the newest first, below a version.

        Raises:
            ModelNotFound: There is no such model.
        """
        row = visible_model(model_id, user_id)
        return version_views(row, page_versions(model_id, before, limit), user_id)

    @verb
    def tag(self, model_id: str, version: int, tag: str, owner_id: str, *, remove: bool) -> VersionView:
        """Puts a tag on a version that is here, or takes it away.

        Raises:
            ModelNotFound: The user owns no such model, or it has no such version.
            Quota: The version carries as many tags as it may.
        """
        row = lock_owned_model(model_id, owner_id)
        stored_version(row, version)
        if remove:
            remove_tag(model_id, version, tag)
        else:
            put_tag(model_id, version, tag)
            if count_tags(model_id, version) > MAX_TAGS:
                raise Quota(f"version {version} carries {MAX_TAGS} tags, as many as it may: take one away first")
        return version_views(row, [get_version(model_id, version)], owner_id)[0]

    @snapshot
    def page(self, owner_id: str, before: tuple[datetime, str] | None, limit: int) -> list[Model]:
        """Returns the owner's models, the newest first, behind a (create_time, model_id), without their manifests."""
        return page_models(owner_id, before, limit)

    @verb
    def remove(self, model_id: str, owner_id: str, now: datetime) -> None:
        """Removes a model.

        Raises:
            ModelNotFound: The user owns no such model.
            ModelInUse: A training that is not ended needs it.
        """
        row = lock_owned_model(model_id, owner_id)
        needed_by = find_training_that_needs(model_id)
        if needed_by is not None:
            raise ModelInUse(
                f"the training {needed_by.training_id} needs the model {model_id}: wait for its end or remove it",
                training_id=needed_by.training_id,
            )
        remove_model(row, now)

    @snapshot
    def metrics(self, model_id: str, user_id: str, after: tuple[int, str], limit: int) -> list[MetricReport]:
        """Returns the metrics reported on a model, by round and reporter, behind a (round, reporter).

        A round's aggregated ones come first, with the reporter "". The owner sees everything, a participant its own and
        the aggregated values that the training asked for.

        Raises:
            ModelNotFound: There is no such model for the user.
        """
        return page_reports(visible_model(model_id, user_id), user_id, after, limit)

    @verb
    def predicts_with(self, model_id: str, user_id: str) -> tuple[str, Uncertainty]:
        """Returns the architecture of a model like `get`, and the uncertainty method of the training that works on it.

        Raises:
            ModelNotFound: There is no such model.
        """
        model = visible_model(model_id, user_id)
        row = find_training_of_model(model_id)
        return model.architecture, NoUncertainty() if row is None else to_spec(row.spec).uncertainty

    @verb
    def digests_in_use(self, digests: Collection[str]) -> set[str]:
        """Returns which of some digests (a few hundred at most) belong to files that are still needed."""
        return needed_digests(digests)

    @verb
    def keep_checksums(self, blob: BlobRef) -> None:
        """Stores the checksums of a file that was found intact, wherever it is referred to."""
        for table in (ModelVersionRow, ModelBaseRow, ArtifactRow, UpdateRow, AssignmentRow):
            table.update(checksums=blob.checksums).where(table.sha256 == blob.sha256).execute()
        deltas = ModelVersionRow.update(delta_checksums=blob.checksums)
        deltas.where(ModelVersionRow.delta_sha256 == blob.sha256).execute()
