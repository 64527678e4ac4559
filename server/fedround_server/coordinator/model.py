"""Use cases about models."""

from collections.abc import AsyncGenerator
from datetime import datetime

from fedround_server.coordinator.context import Context, in_thread
from fedround_server.coordinator.uploads.receive import Incoming, Uploads
from fedround_server.domain.model import BlobRef, Model, ModelVersion, NewModel, VersionView
from fedround_server.domain.update import MetricReport

CHUNK = 3 << 18
"""768 KiB: a multiple of three, so that a JSON client can concatenate base64 chunks."""


class Models:
    """What can be done with models."""

    def __init__(self, context: Context, uploads: Uploads) -> None:
        """Joins what is needed."""
        self._context = context
        self._uploads = uploads

    async def upload(self, name: str, description: str, architecture: str, incoming: Incoming) -> Model:
        """Stores a model file as version 0 of a new model, once however often an upload with an id is repeated.

        Raises:
            FieldInvalid: The upload has made a model that was removed.
            Quota: The owner's files have too many bytes.
            FedroundError: The file is refused, as `Uploads.receive` tells.
        """
        quotas = self._context.limits.quotas
        made = await self._context.store.models.prepare(
            incoming.user_id, incoming.upload_id, incoming.size_bytes or 0, quotas
        )
        if made is not None:
            return made
        received = await self._uploads.receive(incoming, None)
        model = NewModel(name, description, received.manifest, received.blob, architecture, incoming.upload_id)
        return await self._context.store.models.create(
            self._context.new_id(), incoming.user_id, model, quotas, self._context.clock.now()
        )

    async def get(self, model_id: str, user_id: str) -> Model:
        """Returns a model that the user owns or takes part in training."""
        return await self._context.store.models.get(model_id, user_id)

    async def page(self, owner_id: str, before: tuple[datetime, str] | None, limit: int) -> list[Model]:
        """Returns the owner's models, the newest first."""
        return await self._context.store.models.page(owner_id, before, limit)

    async def get_version(self, model_id: str, version: int | None, tag: str, user_id: str) -> ModelVersion:
        """Returns a version of a model, by number or by tag, by default the latest.

        Raises:
            ModelNotFound: There is none for the user.
        """
        return await self._context.store.models.get_version(model_id, version, user_id, tag)

    async def page_versions(self, model_id: str, user_id: str, before: int | None, limit: int) -> list[VersionView]:
        """Returns a model's versions, the newest first."""
        return await self._context.store.models.page_versions(model_id, user_id, before, limit)

    async def tag(self, model_id: str, version: int, tag: str, owner_id: str, *, remove: bool) -> VersionView:
        """Puts a tag on a version, or takes it away."""
        return await self._context.store.models.tag(model_id, version, tag, owner_id, remove=remove)

    async def read(self, blob: BlobRef, offset: int) -> AsyncGenerator[bytes, None]:
        """Reads a file in chunks, from an offset."""
        with self._context.blobs.open(blob, offset, CHUNK) as file:
            while True:
                chunk = file.read_cached()
                if chunk is None:
                    chunk = await in_thread(file.read)
                if not chunk:
                    return
                yield chunk

    async def remove(self, model_id: str, owner_id: str) -> None:
        """Removes a model.

        Raises:
            ModelNotFound: The user owns no such model.
            ModelInUse: A training that is not ended needs it.
        """
        await self._context.store.models.remove(model_id, owner_id, self._context.clock.now())

    async def metrics(self, model_id: str, user_id: str, after: tuple[int, str], limit: int) -> list[MetricReport]:
        """Returns the metrics reported on a model, by round and reporter."""
        return await self._context.store.models.metrics(model_id, user_id, after, limit)
