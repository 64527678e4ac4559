"""Use cases about models."""

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace

from fedround_server.blobs import BlobDamaged
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.served_files import ModelPart, ServedFile, assembled, file_of, name_of
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.coordinator.tasks import in_thread, opened_in_thread
from fedround_server.coordinator.uploads.receive import Incoming, Received, Uploads
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import ModelDamaged
from fedround_server.domain.model import BlobRef, Model, NewModel, VersionView

log = logging.getLogger(__name__)
MAX_SELECTIONS = 64
"""How many digests of selections of tensors are kept."""


class Models:
    """Stores and reads models."""

    def __init__(self, context: Context, uploads: Uploads, files: StoredFiles) -> None:
        self._context = context
        self._files = files
        # The digests of selections of tensors that were computed last, by the file and the globs.
        self._selections: OrderedDict[tuple[str, tuple[str, ...]], str] = OrderedDict()
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

    async def find_file(
        self, model_id: str, version: int | None, user_id: str, tag: str, part: ModelPart, globs: tuple[str, ...]
    ) -> ServedFile:
        """Returns the file of a version, a part of it, or a selection of its tensors, which `read` sends.

        Raises:
            ModelNotFound: There is no such model, version or part for the user.
            FieldInvalid: No tensor matches a glob.
            ModelDamaged: A stored file is damaged.
        """
        found = await self._context.store.models.get_version(model_id, version, user_id, tag)
        file, name = file_of(found, part), name_of(found, part)
        with _damage_of(name):
            if isinstance(file, BlobRef):
                if not globs:
                    return ServedFile.of(name, found.version, file)
                file = await self._files.with_checksums(file)
            else:
                file = replace(file, base=await self._files.with_checksums(file.base))
            key = file.sha256, globs
            known = self._selections.get(key)
            served = await in_thread(assembled, self._context.blobs.files, name, found.version, file, globs, known)
            if globs:
                # A download that is resumed need not read all of it again.
                self._selections[key] = served.sha256
                if len(self._selections) > MAX_SELECTIONS:
                    self._selections.popitem(last=False)
            return served

    async def read(self, file: ServedFile, offset: int) -> AsyncGenerator[Chunk, None]:
        """Yields a file in chunks of at most 768 KiB, from an offset in bytes. What it is made of is verified first.

        Raises:
            ModelDamaged: A stored file does not have the bytes that were stored.
        """
        with _damage_of(file.name):
            if isinstance(file.source, BlobRef):
                file = replace(file, source=await self._files.with_checksums(file.source))
            blobs, served = self._context.blobs, file
            async with AsyncExitStack() as stack:
                cached = file.open_cached(blobs, offset)
                if cached is not None:
                    reader = stack.enter_context(cached)
                else:
                    reader = await stack.enter_async_context(opened_in_thread(lambda: served.open(blobs, offset)))
                while True:
                    chunk = reader.read_cached()
                    if chunk is None:
                        chunk = await in_thread(reader.read)
                    if not chunk.data:
                        return
                    yield chunk

    async def remove(self, model_id: str, owner_id: str) -> None:
        """Removes a model.

        Raises:
            ModelNotFound: The user owns no such model.
            ModelInUse: A training that has not ended uses it.
        """
        await self._context.store.models.remove(model_id, owner_id, self._context.clock.now())


@contextmanager
def _damage_of(what: str) -> Iterator[None]:
    """Maps damage of a stored file to an error of the download.

    Raises:
        ModelDamaged: A stored file is damaged.
    """
    try:
        yield
    except BlobDamaged as error:
        log.error("%s: %s", what, error)
        raise ModelDamaged(what, error.file, error.problem) from error
