"""Takes in files: checks while they arrive, and makes blobs of them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from fedround_server.blobs import BlobWriter
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import await_even_if_cancelled, in_thread
from fedround_server.coordinator.uploads.space import Claim, Space
from fedround_server.coordinator.uploads.write_buffer import WriteBuffer
from fedround_server.domain.errors import (
    DigestMismatch,
    FedroundError,
    FieldInvalid,
    InvalidArgument,
    ModelFormat,
    ModelTooLarge,
    TokenInvalid,
    UpdateNorm,
    UpdateNotFinite,
    UploadIncomplete,
    UploadSuperseded,
)
from fedround_server.domain.model import BlobRef, Manifest
from fedround_server.domain.update import NormBound
from fedround_server.engine.format.manifest import HeaderGate, Layout
from fedround_server.engine.jobs import Origin
from fedround_server.failpoints import reached


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file that a caller sends.

    Attributes:
        user_id: Who sends it.
        chunks: Its bytes from offset on, in pieces.
        sha256: Declared digest, lower-case hex.
        size_bytes: Declared size of the whole file.
        upload_id: Makes the upload resumable.
        offset: Where the chunks start in the file.
        training_id: The training that an update is for.
        round: The round that it is for.
    """

    user_id: str
    chunks: AsyncIterator[bytes]
    sha256: str | None
    size_bytes: int | None
    upload_id: str | None = None
    offset: int = 0
    training_id: str | None = None
    round: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """A file that is a blob now."""

    blob: BlobRef
    manifest: Manifest


@dataclass(slots=True)
class _Owner:
    """The try that writes an upload, until it is gone."""

    scope: asyncio.Timeout
    gone: asyncio.Event
    why: FedroundError | None = None

    def give_up(self, why: FedroundError) -> None:
        """Ends the try, wherever it waits, with an error."""
        # It may have ended while its caller waited for another one: with the token that let it in, say.
        if not self.gone.is_set() and not self.scope.expired():
            self.why = why
            self.scope.reschedule(asyncio.get_running_loop().time())


@dataclass(frozen=True, slots=True)
class _Progress:
    """The latest try of a participant's update; without a writer once it is over."""

    round: int
    upload_id: str | None
    writer: BlobWriter | None


class Uploads:
    """Uploads under way, and those that wait for their next try."""

    def __init__(self, context: Context) -> None:
        """Begins with none under way."""
        self._context = context
        self._space = Space(context.limits, context.blobs)
        self._owners: dict[tuple[str, str], _Owner] = {}
        self._updates: dict[tuple[str, str], _Progress] = {}

    async def recover(self) -> None:
        """Finds what an earlier process left, before serving."""
        await in_thread(self._space.recover)

    async def end(self, user_id: str) -> None:
        """Ends the uploads of a user that was removed, and removes what they left."""
        for owner in [owner for (whose, _), owner in self._owners.items() if whose == user_id]:
            owner.give_up(TokenInvalid())
            await owner.gone.wait()
        await in_thread(self._context.blobs.forget_user, user_id)
        self._space.forget(user_id)

    async def collect(self) -> None:
        """Removes resumable uploads that nobody went on with."""
        for user_id, upload_id in await in_thread(self._context.blobs.collect_uploads):
            self._space.forget(user_id, upload_id)

    def check_new(self) -> None:
        """Makes sure that there is room for something new, which brings no file with it.

        Raises:
            Quota: All files together have too many bytes.
            DiskFull: Too little of the disk is free.
        """
        self._space.check_new()

    def committed_size(self, user_id: str, upload_id: str) -> int:
        """Returns how much of a resumable upload is here, in bytes."""
        return self._context.blobs.upload_size(user_id, upload_id)

    def progress(self, training_id: str, number: int, user_id: str) -> int:
        """Returns how many bytes of a participant's update for a round are here, also between two tries."""
        found = self._updates.get((training_id, user_id))
        if found is None or found.round != number:
            return 0
        if found.writer is not None:
            return found.writer.size_bytes
        return self.committed_size(user_id, found.upload_id) if found.upload_id else 0

    def forget(self, training_id: str) -> None:
        """Forgets how far updates of a training have come."""
        for key in [key for key in self._updates if key[0] == training_id]:
            del self._updates[key]

    async def abandon(self, user_id: str, upload_id: str | None) -> None:
        """Removes what is here of an upload that nobody waits for any more, unless a try is under way."""
        if upload_id is not None and (user_id, upload_id) not in self._owners:
            await in_thread(self._context.blobs.forget_upload, user_id, upload_id)
            self._space.forget(user_id, upload_id)

    async def receive(
        self,
        incoming: Incoming,
        expected: Manifest | None,
        bound: NormBound | None = None,
        differences: Manifest | None = None,
    ) -> Received:
        """Takes a file in. When it returns, the file is on disk, whole, checked and under its digest.

        Args:
            incoming: The file.
            expected: What it must contain; None for any acceptable model.
            bound: How far an update may be from its origin; None for any distance.
            differences: What it may contain instead.

        Raises:
            ModelTooLarge: It is over the limit.
            ModelFormat: It is no acceptable safetensors file.
            UpdateMismatch: Its tensors are not the expected ones.
            UpdateNotFinite: It contains NaN or Inf.
            UpdateNorm: It is too far from its origin.
            UploadIncomplete: The stream ended early.
            DigestMismatch: The bytes are not the declared ones.
            UploadOffset: A resumed upload stands elsewhere.
            TooManyUploads: The unfinished uploads have too many bytes.
            DiskFull: There is no room for it.
            TokenInvalid: The user was removed.
        """
        self._check_limit(incoming.size_bytes)
        user_id, upload_id, offset = incoming.user_id, incoming.upload_id, incoming.offset
        name, is_update = self._context.new_id(), incoming.training_id is not None
        async with self._own(user_id, upload_id or name):
            with (
                self._space.claim(user_id, upload_id, name, offset, is_update=is_update) as claim,
                self._context.blobs.upload(user_id, upload_id, offset, name) as writer,
            ):
                reached("upload.opened")
                claim.writer = writer
                # What is not declared is known with the header.
                claim.cover(incoming.size_bytes or 1)
                try:
                    with self._watch(incoming, writer):
                        layout = await self._take(incoming, HeaderGate(expected, differences), writer, claim)
                    reached("upload.complete")
                    await self._check_and_sync(writer, bound)
                except (InvalidArgument, DigestMismatch, ModelTooLarge):
                    writer.discard()
                    raise
                await in_thread(self._context.blobs.adopt, writer.path, writer.blob)
                return Received(writer.blob, layout.manifest)

    async def _take(self, incoming: Incoming, gate: HeaderGate, writer: BlobWriter, claim: Claim) -> Layout:
        if incoming.offset:
            await in_thread(writer.replay, gate.feed)
        async with WriteBuffer(writer) as intake:
            async for chunk in incoming.chunks:
                if gate.takes_long(chunk):
                    await in_thread(gate.feed, chunk)
                else:
                    gate.feed(chunk)
                self._check_size(incoming, gate.layout, intake.size_bytes + len(chunk))
                if gate.layout is not None and incoming.size_bytes is None:
                    claim.cover(gate.layout.size_bytes)
                await intake.write(chunk)
        size = writer.size_bytes
        described = None if gate.layout is None else gate.layout.size_bytes
        if size == 0 and not incoming.size_bytes:
            raise FieldInvalid("chunk", "no file was sent: send a safetensors file in chunks behind the spec")
        if incoming.size_bytes is not None and size < incoming.size_bytes:
            raise UploadIncomplete(size, incoming.size_bytes)
        if incoming.size_bytes is None and (described is None or size < described):
            raise UploadIncomplete(size, described)
        if incoming.sha256 is not None and writer.blob.sha256 != incoming.sha256:
            raise DigestMismatch(
                f"the file's SHA-256 is {writer.blob.sha256}, declared was {incoming.sha256}: send it again"
            )
        if gate.layout is None or size < gate.layout.size_bytes:
            raise ModelFormat(f"the file is cut: its header describes more than the {size} bytes that it has")
        return gate.layout

    def _check_size(self, incoming: Incoming, layout: Layout | None, size: int) -> None:
        if incoming.size_bytes is not None and size > incoming.size_bytes:
            raise FieldInvalid("size_bytes", f"the file is larger than the {incoming.size_bytes} bytes declared")
        if layout is not None:
            self._check_limit(layout.size_bytes)
            if size > layout.size_bytes:
                raise ModelFormat(f"the file goes on behind its last tensor, at byte {layout.size_bytes}")

    def _check_limit(self, size: int | None) -> None:
        limit = self._context.limits.max_model_bytes
        if size is not None and size > limit:
            raise ModelTooLarge(
                f"the file has {size} bytes, the server takes {limit}: ask the operator for more",
                limit="max_model_bytes",
            )

    async def _check_and_sync(self, writer: BlobWriter, bound: NormBound | None) -> None:
        """Looks at the numbers while the disk is at work."""
        syncing = asyncio.create_task(in_thread(_sync, writer))
        try:
            await self._check_numbers(writer, bound)
            reached("upload.checked")
        finally:
            await syncing

    async def _check_numbers(self, writer: BlobWriter, bound: NormBound | None) -> None:
        origin = None if bound is None else Origin(self._context.blobs.path(bound.origin.sha256), bound.prefix)
        # The worker maps the file: a worker whose file is cut dies, and the next try may cut it.
        found = await await_even_if_cancelled(self._context.engine.examine(writer.path, origin))
        if found.not_finite is not None:
            raise UpdateNotFinite(f"tensor {found.not_finite!r} contains NaN or Inf: nothing of the file was taken")
        if bound is not None and found.norm > bound.limit:
            raise UpdateNorm(found.norm, bound.limit)

    @asynccontextmanager
    async def _own(self, user_id: str, name: str) -> AsyncIterator[None]:
        """Makes the caller the only writer of an upload: an older try, whose connection is gone, ends."""
        key = (user_id, name)
        while (older := self._owners.get(key)) is not None:
            older.give_up(UploadSuperseded(name))
            await older.gone.wait()
        gone = asyncio.Event()
        try:
            async with asyncio.timeout(None) as scope:
                self._owners[key] = owner = _Owner(scope, gone)
                yield
        except TimeoutError:
            if owner.why is None:
                raise
            raise owner.why from None
        finally:
            del self._owners[key]
            gone.set()

    @contextmanager
    def _watch(self, incoming: Incoming, writer: BlobWriter) -> Iterator[None]:
        """Shows an update's progress while it arrives, and between its tries."""
        if incoming.training_id is None:
            yield
            return
        key = (incoming.training_id, incoming.user_id)
        own = _Progress(incoming.round, incoming.upload_id, writer)
        self._updates[key] = own
        try:
            yield
        finally:
            # Else a later try, of this round or the next, shows its own.
            if self._updates.get(key) is own:
                self._updates[key] = replace(own, writer=None)


def _sync(writer: BlobWriter) -> None:
    writer.sync()
    reached("upload.synced")
