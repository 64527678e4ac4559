"""Use cases about models."""

import logging
from collections.abc import AsyncGenerator

from fedround_server.blobs import BlobDamaged
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.coordinator.tasks import in_thread
from fedround_server.coordinator.uploads.receive import Incoming, Received, Uploads
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import ModelDamaged
from fedround_server.domain.model import BlobRef, Model, NewModel, VersionView

log = logging.getLogger(__name__)


class Models:
    """Stores and reads models."""

    def __init__(self, context: Context, uploads: Uploads, files: StoredFiles) -> None:
        self._context = context
        self._files = files
        self._uploads = uploads

    async def upload(
        self, name: str, description: str, architecture: str, incoming: Incoming, *, allow_non_finite: bool = False
    ) -> Model:
        """Stores a model file as version 0 of a new model, exactly once for an upload id.

        Raises:
            FieldInvalid: The upload created a model that has been removed.
            Quota: The owner has too many bytes of files.
            FedroundError: The file is rejected, as described for `Uploads.receive`.
        """
        quotas = self._context.limits
        made = await self._context.store.models.prepare(
            incoming.user_id, incoming.upload_id, incoming.size_bytes or 0, quotas
        )
        if made is not None:
            return made

        async def create(received: Received) -> tuple[Model, bool]:
            blob, manifest, is_finite = received.blob, received.manifest, received.is_finite
            model = NewModel(name, description, manifest, blob, architecture, incoming.upload_id, is_finite=is_finite)
            model_id, now = self._context.new_id(), self._context.clock.now()
            stored = await self._context.store.models.create(model_id, incoming.user_id, model, quotas, now)
            return stored, stored.model_id == model_id

        return await self._uploads.receive(incoming, None, create, allow_non_finite=allow_non_finite)

    async def tag(self, model_id: str, version: int, tag: str, owner_id: str, *, remove: bool) -> VersionView:
        """Adds a tag to a version, or removes it.

        Raises:
            FedroundError: As described for `ModelVerbs.tag`.
        """
        return await self._context.store.models.tag(model_id, version, tag, owner_id, remove=remove)

    async def read(self, what: str, blob: BlobRef, offset: int) -> AsyncGenerator[Chunk, None]:
        """Yields a file in chunks of at most 768 KiB, from an offset in bytes. Each is verified first.

        Args:
            what: What the file is, for errors.
            blob: The file.
            offset: Where to start, in bytes.

        Raises:
            ModelDamaged: The file does not have the bytes that were stored.
        """
        try:
            with self._context.blobs.open(await self._files.with_checksums(blob), offset) as file:
                while True:
                    chunk = file.read_cached()
                    if chunk is None:
                        chunk = await in_thread(file.read)
                    if not chunk.data:
                        return
                    yield chunk
        except BlobDamaged as error:
            log.error("%s: %s", what, error)
            raise ModelDamaged(what, error.file, error.problem) from error

    async def remove(self, model_id: str, owner_id: str) -> None:
        """Removes a model.

        Raises:
            ModelNotFound: The user owns no such model.
            ModelInUse: A training that has not ended uses it.
        """
        await self._context.store.models.remove(model_id, owner_id, self._context.clock.now())
