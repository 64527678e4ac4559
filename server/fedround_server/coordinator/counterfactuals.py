"""Computes what would have come of the updates of a training without some of its participants."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from fedround_server.blobs import BlobDamaged, map_disk_full
from fedround_server.coordinator.aggregation import job_of
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.results import commit_files
from fedround_server.coordinator.tasks import await_even_if_cancelled, in_thread
from fedround_server.coordinator.uploads.space import Space
from fedround_server.domain.aggregation import AggregationState
from fedround_server.domain.counterfactual import BranchVersion, Counterfactual
from fedround_server.domain.errors import FieldInvalid, ReplayImpossible, Unavailable
from fedround_server.domain.model import BlobRef, Model, VersionFile, blobs_of
from fedround_server.engine.jobs import AggregationFailed, AggregationJob, CheckJob, UpdateOrigin
from fedround_server.store.queries.aggregation_task import ReplayTask

NO_UPDATES = "no update is left"


@dataclass(frozen=True, slots=True)
class ComputedVersion:
    """A version of a side branch.

    Attributes:
        number: Its number.
        version: The version.
        distance: How far it is from the recorded version (L2, over all floating tensors); None if that is not stored.
    """

    number: int
    version: BranchVersion
    distance: float | None


class Counterfactuals:
    """Computes side branches, round by round: in between, other replays have their turn."""

    def __init__(self, context: Context, space: Space, lock: asyncio.Lock) -> None:
        """Computes a round while it holds the lock: the worker that does it also has other work."""
        self._context = context
        self._space = space
        self._store = context.store.counterfactuals
        self._lock = lock

    async def replay(
        self, training_id: str, without: Collection[str], name: str, request_id: str | None, actor_id: str
    ) -> AsyncGenerator[ComputedVersion | Model, None]:
        """Yields what each round of a training would have made without some users, and the model that this becomes.

        The model is stored at the end, all versions at once. Until then nothing refers to the files.

        Args:
            training_id: The training.
            without: Users whose updates are left out.
            name: Name of the model; empty to store none.
            request_id: Id of the request; one that has made a model before yields this alone.
            actor_id: Who asks.

        Raises:
            FieldInvalid: No update of a user counted in any of the rounds.
            ReplayImpossible: A round cannot be computed once more; the message says why.
            Quota: The actor has too many bytes of files.
            DiskFull: The disk is almost full.
            FedroundError: As `CounterfactualVerbs.find` raises it.
        """
        quotas = self._context.limits
        if name and (made := await self._store.prepare(actor_id, request_id, quotas)) is not None:
            yield made
            return
        kept = _Files(self._context)
        try:
            versions: list[BranchVersion] = []
            async with aclosing(self._versions(training_id, without, actor_id, kept)) as computed:
                async for one in computed:
                    if name:
                        versions.append(one.version)
                    else:
                        await kept.release_but(one.version)
                    yield one
            if name:
                branch = Counterfactual(training_id, tuple(sorted(without)), name, tuple(versions), request_id)
                # It goes on if the caller is cancelled, who then must not remove the files.
                stored, kept = kept, _Files(self._context)
                yield await self._context.tasks.run_shielded(self._create(branch, actor_id, stored))
        finally:
            await kept.release()

    async def _create(self, branch: Counterfactual, actor_id: str, files: "_Files") -> Model:
        new_id, now = self._context.new_id(), self._context.clock.now()
        try:
            model = await self._store.create(new_id, actor_id, branch, self._context.limits, now)
        except Unavailable:
            # The answer of the database may be lost, and the rows there.
            files.keep()
            raise
        except BaseException:
            await files.release()
            raise
        files.keep()
        return model

    async def _versions(
        self, training_id: str, without: Collection[str], actor_id: str, files: "_Files"
    ) -> AsyncGenerator[ComputedVersion, None]:
        found = await self._store.find(training_id, actor_id)
        if absent := sorted(set(without) - found.user_ids):
            raise FieldInvalid("without_client_ids", f"no round has an update of {', '.join(absent[:20])}")
        for number in found.rounds:
            # What cannot be computed is told before anything is.
            task = await self._context.store.rounds.find_replay(training_id, number, actor_id)
            if task.aggregation.computation is not None and task.aggregation.computation.relays:
                raise ReplayImpossible(
                    "the training allows relays, and a partial sum cannot be moved to the model of another branch: its"
                    " rounds can be computed once more only as they were",
                    cause="RELAYS",
                )
        file, state = found.file, found.state
        for version, number in enumerate(found.rounds, 1):
            task = await self._context.store.rounds.find_replay(training_id, number, actor_id)
            async with self._lock:
                self._space.check_new()
                try:
                    computed = await await_even_if_cancelled(self._compute(task, without, file, state, files))
                    distance = await self._distance(task, computed.file)
                except BlobDamaged as error:
                    raise ReplayImpossible(f"{error}: restore it from a backup") from error
            file, state = computed.file, computed.state
            yield ComputedVersion(version, computed, distance)

    async def _compute(
        self, task: ReplayTask, without: Collection[str], file: VersionFile, state: AggregationState, files: "_Files"
    ) -> BranchVersion:
        """Computes the next version of the branch, after one with a file and a state."""
        job = _job(task, without, file, state)
        done, exact = task.aggregation.round, file == task.aggregation.model
        counts = len(job.updates), sum(job.weights)
        if not any(job.weights):
            return BranchVersion(done.number, file, state, *counts, exact, NO_UPDATES)
        try:
            with map_disk_full():
                result = await self._context.engine.aggregate(job)
        except AggregationFailed as error:
            return BranchVersion(done.number, file, state, *counts, exact, str(error))
        left = await commit_files(self._context, result)
        files.add(result.blob, *left.slots.values())
        return BranchVersion(done.number, result.made, left, *counts, exact)

    async def _distance(self, task: ReplayTask, file: VersionFile) -> float | None:
        recorded = task.made.blob
        if not task.made.stored:
            return None
        if file == recorded:
            return 0.0
        # The tensors that a delta lacks are those of the base of both.
        found = await self._context.engine.check(CheckJob(blobs_of(file)[-1], origin=recorded, model=recorded))
        return found.norm


class _Files:
    """The files of a branch that no row refers to yet."""

    def __init__(self, context: Context) -> None:
        self._blobs = context.blobs
        self._files: list[BlobRef] = []

    def add(self, *files: BlobRef) -> None:
        """Adds files that were committed."""
        self._files += files

    def keep(self) -> None:
        """Leaves the files to the collection: rows refer to them, or may."""
        for file in self._files:
            self._blobs.keep(file)
        self._files.clear()

    async def release(self) -> None:
        """Removes the files."""
        released, self._files = self._files, []
        await self._release(released)

    async def release_but(self, version: BranchVersion) -> None:
        """Removes the files that a version does not have."""
        needed = {*blobs_of(version.file), *version.state.slots.values()}
        released = [file for file in self._files if file not in needed]
        self._files = [file for file in self._files if file in needed]
        await self._release(released)

    async def _release(self, released: Sequence[BlobRef]) -> None:
        def release() -> None:
            for file in released:
                self._blobs.release(file)

        if released:
            await in_thread(release)


def _job(task: ReplayTask, without: Collection[str], file: VersionFile, state: AggregationState) -> AggregationJob:
    """Returns the aggregation of the other updates of a round around another model, for which they are differences."""
    others = [update for update in task.aggregation.updates if update.user_id not in without]
    recorded = task.aggregation.model
    job = job_of(replace(task.aggregation, updates=tuple(others)))
    if file == recorded:
        return replace(job, state=state)
    origins = job.origins or (UpdateOrigin(),) * len(others)
    moved = tuple(replace(origin, base=origin.base or recorded) for origin in origins)
    return replace(job, model=file, state=state, origins=moved)
