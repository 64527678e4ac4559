"""Receives files: checks them while they arrive, and makes blobs of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Generic, TypeVar

from fedround_server.blobs import BlobDamaged, Blobs, BlobWriter, StagedBlob, StagedRef, UploadRef
from fedround_server.coordinator.adoption import decide
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import await_even_if_cancelled, in_thread, opened_in_thread
from fedround_server.coordinator.uploads.arrival import Arrival
from fedround_server.coordinator.uploads.attempts import Attempts
from fedround_server.coordinator.uploads.body import BodyReceiver, Incoming
from fedround_server.coordinator.uploads.progress import Arriving, UpdateProgress
from fedround_server.coordinator.uploads.small_files import Arrived, SmallFiles
from fedround_server.coordinator.uploads.space import Space, SpaceReservation
from fedround_server.coordinator.uploads.write_buffer import share_of_buffers
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import (
    DigestMismatch,
    InvalidArgument,
    ModelDamaged,
    ModelTooLarge,
    TokenInvalid,
    UpdateMismatch,
    UpdateNorm,
    UpdateNotFinite,
)
from fedround_server.domain.model import BlobRef, Manifest, VersionFile
from fedround_server.domain.rounds.kind import ExpectedTensors
from fedround_server.domain.update import NormBound
from fedround_server.engine.format.gate import HeaderGate
from fedround_server.engine.format.manifest import Layout
from fedround_server.engine.jobs import CheckJob, CheckResult, SumCheck
from fedround_server.failpoints import reached

__all__ = ["Incoming", "Received", "Uploads"]

log = logging.getLogger(__name__)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Received:
    """A file that is a blob now.

    Attributes:
        blob: The file.
        manifest: Its tensors.
        is_finite: Whether it has neither NaN nor Inf, other than those of the model that an update is compared with.
    """

    blob: BlobRef
    manifest: Manifest
    is_finite: bool


@dataclass(frozen=True, slots=True)
class _Upload(Generic[R]):
    """A file that is being received; `Uploads.receive` describes most attributes.

    Attributes:
        ref: Where it is written, unless it is small.
    """

    incoming: Incoming
    ref: StagedRef | UploadRef
    check: Callable[[Manifest], None] | None
    accept: Callable[[Received], Awaitable[tuple[R, bool]]]
    bound: NormBound | None
    model: VersionFile | None
    allow_non_finite: bool
    expected: ExpectedTensors | None
    check_metadata: Callable[[Mapping[str, str]], None] | None
    sums: SumCheck | None

    @property
    def is_small(self) -> bool:
        """Whether it is kept in memory until it is whole: an update that the server's own process can check."""
        needs_worker = self.bound is not None or self.model is not None or self.sums is not None
        return self.expected is not None and not needs_worker and self.incoming.is_small and not self.incoming.offset

    def check_numbers(self, found: CheckResult) -> bool:
        """Returns whether all numbers are finite, by what was found in them.

        Raises:
            UpdateMismatch: It has int8 differences or scales that are out of range, or is no sum of updates.
            UpdateNotFinite: A number is not finite, and that is not allowed.
        """
        if found.problem is not None:
            raise UpdateMismatch(f"{found.problem}: nothing of the file was taken")
        if found.not_finite is not None and not self.allow_non_finite:
            raise _not_finite(found.not_finite, self.incoming, self.model)
        return found.not_finite is None

    def check_job(self, writer: BlobWriter, layout: Layout) -> CheckJob:
        """Returns what the worker checks."""
        scaled = {} if self.expected is None else self.expected.scaled(layout.manifest)
        beside = "" if self.expected is None else self.expected.beside
        origin, prefix = (None, "") if self.bound is None else (self.bound.origin, self.bound.prefix)
        return CheckJob(writer.staged.file, origin, prefix, self.model, scaled, beside, self.sums)


class Uploads:
    """Uploads in progress, and those that wait for their next attempt.

    Attributes:
        space: The space that they take.
        progress: How much of each participant's update has arrived.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._blobs = context.blobs
        self._attempts = Attempts()
        self._numbers = count()
        self._small = SmallFiles(context.blobs)
        self.space = Space(context.limits, context.blobs)
        self.progress = UpdateProgress(context.blobs)

    async def end(self, user_id: str) -> None:
        """Ends the uploads of a user that was removed, and removes what they left."""
        await self._attempts.interrupt_user(user_id, TokenInvalid())
        await in_thread(self._blobs.remove_uploads, user_id)
        self.space.forget_user(user_id)

    async def collect(self) -> list[int]:
        """Removes resumable uploads that were not continued for a day; returns their sizes in bytes."""
        removed = await in_thread(self._blobs.collect_uploads)
        for ref in removed:
            self.space.forget(ref)
        return list(removed.values())

    async def committed_size(self, user_id: str, upload_id: str) -> int:
        """Returns how many bytes of a resumable upload are stored."""
        return await in_thread(self._blobs.upload_size, UploadRef(user_id, upload_id))

    async def abandon(self, user_id: str, upload_id: str | None) -> None:
        """Removes what is stored of an upload that is no longer wanted, unless an attempt is in progress."""
        if upload_id is not None and (ref := UploadRef(user_id, upload_id)) not in self._attempts:
            await in_thread(self._blobs.remove_upload, ref)
            self.space.forget(ref)

    async def receive(
        self,
        incoming: Incoming,
        check: Callable[[Manifest], None] | None,
        accept: Callable[[Received], Awaitable[tuple[R, bool]]],
        bound: NormBound | None = None,
        *,
        model: VersionFile | None = None,
        allow_non_finite: bool = False,
        expected: ExpectedTensors | None = None,
        check_metadata: Callable[[Mapping[str, str]], None] | None = None,
        sums: SumCheck | None = None,
    ) -> R:
        """Receives a file, and has it accepted once it is on disk, complete, checked and a blob.

        The upload counts against its user until the file is accepted or removed.

        Args:
            incoming: The file.
            check: Raises an error about tensors that are not acceptable; None for any model.
            accept: Runs the transaction that may refer to the blob, to its end even if the caller is cancelled; returns
                the result, and whether a row refers to the blob now. If not, or if it is rejected, the blob is removed.
            bound: How far an update may be from its origin; None for any distance.
            model: A model whose NaN and Inf it may have in the same places; None if it may have none.
            allow_non_finite: Whether it may have NaN and Inf anywhere.
            expected: The tensors of an update; None for another file.
            check_metadata: Raises an error about metadata that is not acceptable; None for any.
            sums: What the file is the sum of, if it is a partial sum.

        Raises:
            FieldInvalid: There are more bytes than declared, or none.
            ModelTooLarge: It is over the limit.
            ModelFormat: It is no acceptable safetensors file.
            UpdateNotFinite: It contains NaN or Inf.
            UpdateMismatch: It has int8 differences or scales that are out of range.
            UpdateNorm: It is too far from its origin.
            ModelDamaged: The file of its origin is damaged.
            UploadIncomplete: The stream ended early.
            DigestMismatch: The bytes are not the declared ones.
            UploadOffset: A resumed upload has fewer bytes than the offset.
            UploadSuperseded: A newer attempt at the upload began.
            TooManyUploads: The unfinished uploads have too many bytes.
            DiskFull: There is no room for it.
            TokenInvalid: The user was removed.
            FedroundError: `check`, `check_metadata` or `accept` raised it.
        """
        user_id, upload_id = incoming.user_id, incoming.upload_id
        ref = StagedRef(f"upload-{next(self._numbers)}") if upload_id is None else UploadRef(user_id, upload_id)
        upload = _Upload(incoming, ref, check, accept, bound, model, allow_non_finite, expected, check_metadata, sums)
        async with self._attempts.begin(user_id, ref):
            is_update = incoming.training_id is not None
            with self.space.reserve(user_id, ref, incoming.offset, is_update=is_update) as space:
                if not upload.is_small:
                    return await self._receive_file(upload, space)
                async with Arrival(incoming.chunks, incoming.size_bytes or 0) as arrival:
                    if await self._arrives(upload, arrival, space):
                        work = self._accept_small(upload, arrival, space)
                        # The next attempt begins when this one has ended.
                        return await self._context.tasks.run_to_end(work)
                    slow = replace(upload, incoming=replace(incoming, chunks=arrival.rest()))
                    return await self._receive_file(slow, space)

    async def _arrives(self, upload: "_Upload[R]", arrival: Arrival, space: SpaceReservation) -> bool:
        """Returns whether a small file arrives in time; what has arrived stays if the caller is cancelled."""
        space.cover(arrival.declared)
        try:
            with self._shown(upload, arrival), self._context.traces.span("receive") as span:
                span.set("size_bytes", arrival.declared)
                return await arrival.is_whole()
        except asyncio.CancelledError:
            if isinstance(upload.ref, UploadRef):
                await in_thread(_write, self._blobs, upload.ref, arrival.chunks)
            raise

    async def _accept_small(self, upload: "_Upload[R]", arrival: Arrival, space: SpaceReservation) -> R:
        """Checks and stores a file that is in memory, and has it accepted."""
        body, chunks = self._body(upload), arrival.chunks
        if isinstance(upload.ref, UploadRef) and space.is_continued:
            await in_thread(self._blobs.remove_upload, upload.ref)
        size = 0
        for chunk in chunks:
            size += len(chunk.data)
            await body.check(chunk, size)
        with self._context.traces.span("check"):
            blob = await self._small.store(Arrived(chunks, body, upload.check_numbers))
        return await decide(self._blobs, blob, upload.accept(Received(blob, body.manifest, is_finite=True)))

    async def _receive_file(self, upload: "_Upload[R]", space: SpaceReservation) -> R:
        """Writes a file to disk while it arrives, checks it, and has it accepted."""
        incoming = upload.incoming
        body = self._body(upload)
        async with opened_in_thread(lambda: self._blobs.writer(upload.ref, incoming.offset)) as writer:
            reached("upload.opened")
            space.write_with(writer)
            # A size that is not declared is known with the header.
            space.cover(incoming.size_bytes or 1)
            try:
                with self._shown(upload, writer), self._context.traces.span("receive") as span:
                    try:
                        await body.receive(writer, space)
                    finally:
                        span.set("size_bytes", body.size_bytes)
                layout = body.check_complete(writer.staged.blob)
                reached("upload.complete")
                with self._context.traces.span("check"):
                    job = upload.check_job(writer, layout)
                    found = await self._check_and_sync(writer, body.numbers.found, job, upload.bound)
                is_finite = upload.check_numbers(found)
                work = self._commit(upload, writer.staged, Received(writer.staged.blob, layout.manifest, is_finite))
                # The file belongs to this attempt until it is a blob.
                return await self._context.tasks.run_to_end(work)
            except (InvalidArgument, DigestMismatch, ModelTooLarge):
                writer.discard()
                raise

    async def _commit(self, upload: "_Upload[R]", staged: StagedBlob, received: Received) -> R:
        await in_thread(self._blobs.commit, staged)
        return await decide(self._blobs, staged.blob, upload.accept(received))

    def _body(self, upload: "_Upload[R]") -> BodyReceiver:
        max_bytes = self._context.limits.max_model_bytes
        scaled = _unscaled if upload.expected is None else upload.expected.scaled
        gate = HeaderGate(upload.check, upload.check_metadata)
        return BodyReceiver(upload.incoming, gate, max_bytes, lambda: share_of_buffers(len(self._attempts)), scaled)

    def _shown(self, upload: "_Upload[R]", arriving: Arriving) -> AbstractContextManager[None]:
        """Shows the progress of an update."""
        incoming = upload.incoming
        if incoming.training_id is None:
            return nullcontext()
        return self.progress.watch(incoming.training_id, incoming.round, incoming.user_id, upload.ref, arriving)

    async def _check_and_sync(
        self, writer: BlobWriter, found: CheckResult, job: CheckJob, bound: NormBound | None
    ) -> CheckResult:
        """Syncs a file, and has the worker compare it with models meanwhile if its own bytes do not decide."""
        syncing = asyncio.create_task(in_thread(_sync, writer))
        try:
            if not _is_decided(found, job):
                found = await self._check_numbers(job, bound)
            reached("upload.checked")
        finally:
            await syncing
        return found

    async def _check_numbers(self, job: CheckJob, bound: NormBound | None) -> CheckResult:
        # The worker maps the file: truncating it, as the next attempt may, would end the worker.
        try:
            found = await await_even_if_cancelled(self._context.engine.check(job))
        except BlobDamaged as error:
            log.error("%s", error)
            raise ModelDamaged("the model that the update is compared with", error.file, error.problem) from error
        if bound is not None and found.norm > bound.limit:
            raise UpdateNorm(found.norm, bound.limit)
        return found


def _unscaled(_: Manifest) -> Collection[str]:
    return ()


def _is_decided(found: CheckResult, job: CheckJob) -> bool:
    """Returns whether a file is acceptable or not whatever the models of a job are, by what its own bytes show."""
    if found.problem is not None:
        return True
    return job.origin is None and job.sums is None if found.not_finite is None else job.model is None


def _not_finite(tensor: str, incoming: Incoming, model: VersionFile | None) -> UpdateNotFinite:
    where = f"tensor {tensor!r} contains NaN or Inf"
    if incoming.training_id is None:
        return UpdateNotFinite(
            f"{where}: nothing of the file was taken. If it is a buffer such as a mask, set allow_non_finite_buffers"
            " (--allow-non-finite-buffers), or leave it out of the state dict: register_buffer(..., persistent=False)"
        )
    return UpdateNotFinite(
        f"{where}{'' if model is None else ' where the model has none'}: nothing of the file was taken"
    )


def _write(blobs: Blobs, ref: UploadRef, chunks: Iterable[Chunk]) -> None:
    """Leaves chunks to the next attempt at an upload."""
    with blobs.writer(ref) as writer:
        for data, crc32c in chunks:
            writer.write(data, crc32c)


def _sync(writer: BlobWriter) -> None:
    writer.sync()
    reached("upload.synced")
