"""Aggregates closed rounds in the background, and commits the results."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from fedround_server.blobs import BlobDamaged, map_disk_full
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.log_context import begin_work
from fedround_server.coordinator.outages import level_of
from fedround_server.coordinator.results import adopt
from fedround_server.coordinator.shadows import Shadows
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.domain.aggregation import NO_STATE, Aggregation, AggregationState, UpdateFacts
from fedround_server.domain.audit import acting
from fedround_server.domain.errors import DiskFull, Unavailable
from fedround_server.domain.model import VersionFile, blobs_of
from fedround_server.domain.rounds.kind import Computation
from fedround_server.domain.update import Update
from fedround_server.engine.executor import WorkerLost
from fedround_server.engine.jobs import AggregationFailed, AggregationJob, UpdateOrigin
from fedround_server.failpoints import reached
from fedround_server.store.queries.aggregation_task import AggregationTask

log = logging.getLogger(__name__)
log_rounds = structlog.get_logger("fedround.training")
Number = TypeVar("Number", int, float)
RETRY_DELAY = timedelta(seconds=1)
"""The delay before another attempt after a transient error that names no delay of its own."""
DAMAGE_DELAY = timedelta(seconds=10)
"""The delay before another attempt while a damaged file has to be restored: no participant can send it again."""
TRANSIENT = (Unavailable, DiskFull, OSError)
"""Errors that may not recur at the next attempt: accepted updates wait for it."""
INTERNAL = "the round could not be aggregated; the server's log has more under the id {}"


class Aggregations:
    """The aggregations under way, at most one per training.

    Attributes:
        damage: By training, which file has to be restored before its closed round can be aggregated.
    """

    def __init__(self, context: Context, files: StoredFiles, follow_up: Callable[[str], Awaitable[None]]) -> None:
        """Calls `follow_up` with the training's id after a result or a failure has been committed."""
        self.damage: dict[str, str] = {}
        self._context = context
        self._files = files
        self._shadows = Shadows(context, files)
        self._store = context.store.rounds
        self._follow_up = follow_up
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """Leaves closed rounds to the next start: a round opened from now on would miss its participants."""
        self._stopped = True

    def start(self, training_id: str) -> bool:
        """Starts the aggregation of a training's closed round in the background; returns whether none was under way.

        If the round is not closed, but waits for others until a set time, this is followed up instead.
        """
        # The one under way may have looked for closed rounds just before this one was closed.
        self._again.add(training_id)
        idle = training_id not in self._running
        if idle and not self._stopped:
            self._running.add(training_id)
            self._context.background.create_task(self._run(training_id), name=f"aggregate {training_id}")
        return idle

    async def _run(self, training_id: str) -> None:
        # The user whose update closed the round started this task, but does not make the model.
        acting.set("")
        begin_work(training_id)
        found = False
        # Since when the closed round waits for its result, over all attempts.
        closed_times: dict[tuple[int, int], datetime] = {}
        try:
            while not self._stopped:
                self._again.discard(training_id)
                try:
                    task = await self._store.find_aggregation(training_id)
                    if task is not None:
                        found = True
                        if task.round.releases:
                            self._context.hub.notify(training_id)
                        reached("aggregation.found")
                        key = task.round.number, task.round.epoch
                        closed_times = {key: closed_times.get(key, self._context.clock.now())}
                        await self._traced(task, closed_times[key])
                    elif training_id not in self._again:
                        if not found:
                            await self._follow_up(training_id)
                        return
                except TRANSIENT as error:
                    log.log(level_of(error), "aggregation of training %s: %s", training_id, error)
                    seconds = getattr(error, "retry_seconds", None)
                    await self._context.clock.sleep(timedelta(seconds=seconds) if seconds else RETRY_DELAY)
                    # The error may have hidden a commit that succeeded.
                    self._context.hub.notify(training_id)
                except BlobDamaged as error:
                    self.damage[training_id] = f"{error}; the round goes on when it is restored from a backup"
                    log.error("aggregation of training %s waits: %s", training_id, self.damage[training_id])
                    await self._context.clock.sleep(DAMAGE_DELAY)
        finally:
            self.damage.pop(training_id, None)
            self._running.discard(training_id)

    async def _traced(self, task: AggregationTask, close_time: datetime) -> None:
        """Aggregates a round in a span, and with a line of the log at its end."""
        closed, traces, begun = task.round, self._context.traces, time.monotonic()
        update_ids = [update.update_id for update in task.updates]
        begin_work(closed.training_id, round=closed.number)
        with traces.aggregation(update_ids) as span:
            if span.trace_id:
                span.set("training_id", closed.training_id)
                span.set("round", closed.number)
                span.set("kind", closed.kind.public_name)
                span.set("updates", len(update_ids))
                structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
            committed = await self._aggregate(task, close_time)
        traces.forget(update_ids)
        if committed:
            log_rounds.info("round_aggregated", updates=len(update_ids), seconds=round(time.monotonic() - begun, 3))

    async def _aggregate(self, task: AggregationTask, close_time: datetime) -> bool:
        """Aggregates a round that was closed at a time, and commits the result, or the failure.

        Returns:
            Whether a result was committed: not if another replica has taken the round over.

        Raises:
            BlobDamaged: The model that the round started from, or the state of an aggregation, is damaged.
        """
        closed = task.round
        now = self._context.clock.now
        committed = False
        try:
            result, state, report = await self._compute(task)
            shadows = [await self._shadows.compute(shadow, job_of(task)) for shadow in task.shadows]
            if self._stopped:
                return False
            with self._context.traces.span("commit"):
                committed = await self._store.commit(
                    closed.training_id, closed.number, closed.epoch, result, now(), state, report, shadows
                )
            if committed:
                self._context.counters.add_round(close_time - closed.open_time, now() - close_time)
            reached("aggregation.committed")
        except TRANSIENT:
            raise
        except Exception as error:
            if isinstance(error, BlobDamaged | WorkerLost) and await self._ask_anew(task, error):
                return False
            # The round of one training must not stop the server, which would meet it again after each restart.
            error_id = self._context.new_id()
            log.exception("round %s of training %s failed, id %s", closed.number, closed.training_id, error_id)
            # The messages of other errors may reveal files of the server.
            message = str(error) if isinstance(error, AggregationFailed) else INTERNAL.format(error_id)
            await self._store.fail(
                closed.training_id, closed.number, closed.epoch, "AGGREGATION_FAILED", message, now()
            )
        await self._followed(closed.training_id)
        return committed

    async def _ask_anew(self, task: AggregationTask, error: BlobDamaged | WorkerLost) -> bool:
        """Opens a round again without the updates whose files are damaged: their participants are asked to send them.

        Returns:
            Whether there is a damaged file. One that the disk cannot read ends the worker that has mapped it.

        Raises:
            BlobDamaged: The model that the round or an update started from, or the state of an aggregation, is
                damaged: no participant can send that again.
            OSError: A file was damaged when the worker read it, and is not any more.
        """
        versions = (task.model, *task.bases.values())
        states = (task.state, *(shadow.state for shadow in task.shadows))
        needed = [blob for version in versions for blob in blobs_of(version)]
        for blob in (*needed, *(slot for state in states for slot in state.slots.values())):
            if not isinstance(error, BlobDamaged) or error.sha256 == blob.sha256:
                await self._files.examine(blob)
        lost = [update.update_id for update in task.updates if not await self._files.is_intact(update.blob)]
        if not lost and isinstance(error, BlobDamaged):
            raise OSError(f"{error}, and was intact when it was read again")
        if lost and not self._stopped:
            closed, now = task.round, self._context.clock.now()
            connected = self._context.presence.listeners(now)
            await self._store.reopen(closed.training_id, closed.number, closed.epoch, lost, now, connected=connected)
            reached("aggregation.reopened")
            await self._followed(closed.training_id)
        return bool(lost)

    async def _followed(self, training_id: str) -> None:
        # Before the subscribers are told, so that they read the end of a round and the start of the next one at once.
        try:
            await self._follow_up(training_id)
        finally:
            self._context.hub.notify(training_id)

    async def _compute(
        self, task: AggregationTask
    ) -> tuple[VersionFile | None, AggregationState, Mapping[str, UpdateFacts]]:
        """Makes the file of a closed round, if its kind makes one; else verifies the updates, which are passed on.

        Returns:
            The file, what its aggregation leaves for the next one, and what it has found out about each user's update.
        """
        computation = task.computation
        if computation is None:
            for update in task.updates:
                await self._files.verify(update.blob)
            return None, NO_STATE, {}
        traces, begun = self._context.traces, time.time_ns()
        with map_disk_full():
            result = await self._context.engine.aggregate(job_of(task))
        traces.add("queue", begun, result.begin_time)
        traces.add("aggregate", result.begin_time, time.time_ns())
        reached("aggregation.computed")
        with traces.span("write"):
            state = await adopt(self._context, result)
        reached("aggregation.adopted")
        report = {
            update.user_id: replace(facts, staleness=_staleness(task, update))
            for update, facts in zip(task.updates, result.report, strict=False)
        }
        return result.made, state, report


def job_of(task: AggregationTask) -> AggregationJob:
    """Returns the job that aggregates a closed round.

    Raises:
        ValueError: The round makes no file.
    """
    computation = task.computation
    if computation is None:
        raise ValueError(f"round {task.round.number} of training {task.round.training_id} makes no file")
    return AggregationJob(
        model=task.model,
        updates=tuple(update.blob for update in task.updates),
        weights=tuple(update.num_examples for update in task.updates),
        aggregation=computation.aggregation,
        transport=computation.transport,
        integers=computation.integers,
        keep_non_finite=computation.keep_non_finite,
        tensors=computation.tensors,
        user_ids=tuple(update.user_id for update in task.updates),
        steps=_known(update.local_steps for update in task.updates),
        losses=_known(update.initial_loss for update in task.updates),
        state=task.state,
        population=task.round.population,
        origins=_origins(task, computation),
        expected=computation.expected(task.round.population),
        relays=computation.relays,
    )


def _staleness(task: AggregationTask, update: Update) -> int | None:
    """Returns how many versions were made between the one that an update started from and that of its round."""
    return None if update.base_version is None else task.round.model_version - update.base_version


def _origins(task: AggregationTask, computation: Computation) -> tuple[UpdateOrigin, ...]:
    """Returns what each update stands for; empty without buffering."""
    aggregation = computation.aggregation
    buffering = aggregation.buffering if isinstance(aggregation, Aggregation) else None
    if buffering is None:
        return ()
    # A file without differences need not be compared with where it started, if the model moves towards it.
    needs_bases = not buffering.replaces_model or not computation.transport.is_full
    return tuple(
        UpdateOrigin(
            task.bases.get(update.base_version or 0) if needs_bases else None,
            buffering.factor(_staleness(task, update) or 0),
            buffering.replaces_model,
        )
        for update in task.updates
    )


def _known(values: Iterable[Number | None]) -> tuple[Number, ...]:
    """Returns what a rule needs to know of each update, 0 for those without weight; empty if it is known of none."""
    found = tuple(values)
    return tuple(value or 0 for value in found) if any(value is not None for value in found) else ()
