"""Receives files: checks them while they arrive, and makes blobs of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

from fedround_server.blobs import BlobDamaged, BlobWriter, StagedBlob, StagedRef, UploadRef
from fedround_server.coordinator.adoption import decide
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import await_even_if_cancelled, in_thread
from fedround_server.coordinator.uploads.attempts import Attempts
from fedround_server.coordinator.uploads.body import BodyReceiver, Incoming
from fedround_server.coordinator.uploads.progress import UpdateProgress
from fedround_server.coordinator.uploads.space import Space
from fedround_server.coordinator.uploads.write_buffer import share_of_buffers
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
from fedround_server.engine.jobs import CheckJob, CheckResult
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

    def committed_size(self, user_id: str, upload_id: str) -> int:
        """Returns how many bytes of a resumable upload are stored."""
        return self._blobs.upload_size(UploadRef(user_id, upload_id))

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
            FedroundError: `check` or `accept` raised it.
        """
        max_bytes = self._context.limits.max_model_bytes
        body = BodyReceiver(
            incoming,
            HeaderGate(check),
            max_bytes,
            lambda: share_of_buffers(len(self._attempts)),
            _unscaled if expected is None else expected.scaled,
        )
        user_id, upload_id, offset = incoming.user_id, incoming.upload_id, incoming.offset
        ref = StagedRef(self._context.new_id()) if upload_id is None else UploadRef(user_id, upload_id)
        async with self._attempts.begin(user_id, ref):
            with (
                self.space.reserve(user_id, ref, offset, is_update=incoming.training_id is not None) as space,
                self._blobs.writer(ref, offset) as writer,
            ):
                reached("upload.opened")
                space.writer = writer
                # A size that is not declared is known with the header.
                space.cover(incoming.size_bytes or 1)
                try:
                    with (
                        nullcontext()
                        if incoming.training_id is None
                        else self.progress.watch(incoming.training_id, incoming.round, user_id, ref, writer),
                        self._context.traces.span("receive") as span,
                    ):
                        try:
                            await body.receive(writer, space)
                        finally:
                            span.set("size_bytes", body.size_bytes)

                    def is_acceptable(not_finite: str | None) -> bool:
                        if not_finite is not None and not allow_non_finite:
                            raise _not_finite(not_finite, incoming, model)
                        return not_finite is None

                    layout = body.layout
                    scaled = {} if expected is None or layout is None else expected.scaled(layout.manifest)
                    if body.is_small and bound is None and model is None and not scaled:
                        work = self._store_small(body, writer, is_acceptable, accept)
                    else:
                        layout = _finish(body, writer)
                        beside = "" if expected is None else expected.beside
                        job = _check_job(writer, bound, model, scaled, beside)
                        with self._context.traces.span("check"):
                            found = await self._check_and_sync(writer, body.numbers.found, job, bound)
                        if found.problem is not None:
                            raise UpdateMismatch(f"{found.problem}: nothing of the file was taken")
                        received = Received(writer.staged.blob, layout.manifest, is_acceptable(found.not_finite))
                        work = self._commit(writer.staged, received, accept)
                    # The file belongs to this attempt until it is a blob.
                    return await await_even_if_cancelled(self._context.tasks.run_shielded(work))
                except (InvalidArgument, DigestMismatch, ModelTooLarge):
                    writer.discard()
                    raise

    async def _commit(
        self, staged: StagedBlob, received: Received, accept: Callable[[Received], Awaitable[tuple[R, bool]]]
    ) -> R:
        await in_thread(self._blobs.commit, staged)
        return await decide(self._blobs, staged.blob, accept(received))

    async def _store_small(
        self,
        body: BodyReceiver,
        writer: BlobWriter,
        is_acceptable: Callable[[str | None], bool],
        accept: Callable[[Received], Awaitable[tuple[R, bool]]],
    ) -> R:
        """Does with a small file in one thread what is done with others in several, and in the worker."""

        def store() -> Received:
            layout = _finish(body, writer)
            staged = writer.staged
            is_finite = is_acceptable(_checked(body.numbers.found).not_finite)
            _sync(writer)
            self._blobs.commit(staged)
            return Received(staged.blob, layout.manifest, is_finite)

        with self._context.traces.span("check"):
            received = await in_thread(store)
        return await decide(self._blobs, received.blob, accept(received))

    async def _check_and_sync(
        self, writer: BlobWriter, found: CheckResult, job: CheckJob, bound: NormBound | None
    ) -> CheckResult:
        """Syncs a file, and has the worker compare it with models meanwhile if its own bytes do not decide."""
        syncing = asyncio.create_task(in_thread(_sync, writer))
        try:
            if not _is_decided(found, job):
                found = await self._check_numbers(job, bound)
            _checked(found)
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


def _finish(body: BodyReceiver, writer: BlobWriter) -> Layout:
    layout = body.finish(writer)
    reached("upload.complete")
    return layout


def _checked(found: R) -> R:
    reached("upload.checked")
    return found


def _unscaled(_: Manifest) -> Collection[str]:
    return ()


def _is_decided(found: CheckResult, job: CheckJob) -> bool:
    """Returns whether a file is acceptable or not whatever the models of a job are, by what its own bytes show."""
    if found.problem is not None:
        return True
    return job.origin is None if found.not_finite is None else job.model is None


def _check_job(
    writer: BlobWriter, bound: NormBound | None, model: VersionFile | None, block_sizes: Mapping[str, int], beside: str
) -> CheckJob:
    origin, prefix = (None, "") if bound is None else (bound.origin, bound.prefix)
    return CheckJob(writer.staged.file, origin, prefix, model, block_sizes, beside)


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


def _sync(writer: BlobWriter) -> None:
    writer.sync()
    reached("upload.synced")
