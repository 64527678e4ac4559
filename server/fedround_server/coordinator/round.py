"""Use cases about rounds: the commit protocol."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedround_server.blobs import map_disk_full
from fedround_server.coordinator.context import Context, in_thread, run_shielded
from fedround_server.coordinator.uploads.receive import Incoming, Uploads
from fedround_server.domain import forecast
from fedround_server.domain.audit import acting
from fedround_server.domain.chain import averages
from fedround_server.domain.errors import DiskFull, NotInCohort, RoundNotOpen, Unavailable, UpdateExists
from fedround_server.domain.event import ModelInfo
from fedround_server.domain.model import BlobRef
from fedround_server.domain.round import Round, RoundKind, RoundMember, RoundState, RoundView, UnfinishedRound
from fedround_server.domain.update import NewUpdate, Update
from fedround_server.engine.jobs import SWAG_MOMENTS, AggregationFailed, AggregationJob
from fedround_server.failpoints import reached
from fedround_server.store.verbs.round import AggregationTask
from fedround_server.wakeups import for_actor

log = logging.getLogger(__name__)
RETRY = timedelta(seconds=1)
PASSING = (Unavailable, DiskFull, OSError)
"""What may be over at the next try: accepted updates wait for it."""
INTERNAL = "round {} could not be aggregated; the server's log has more under the id {}"
# A report of an evaluation round brings no file.
NO_FILE = BlobRef("", 0)


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member of a round's cohort, as the actor sees it.

    Attributes:
        last_seen: When it was there last, as far as that is known.
        subscribed: Whether it listens.
        uploaded_bytes: How much of its update is here.
        forecast: When its update is expected; None if it is here, or if nothing is known.
    """

    member: RoundMember
    last_seen: datetime | None
    subscribed: bool
    uploaded_bytes: int
    forecast: datetime | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a round is waiting; forecast_end is when its present attempt will end, None if that is not known."""

    view: RoundView
    members: tuple[MemberView, ...]
    forecast_end: datetime | None


@dataclass(frozen=True, slots=True)
class _Timer:
    """Who waits for the deadline of a round's try."""

    number: int
    attempt: int
    task: asyncio.Task[None]


class Rounds:
    """What can be done with rounds, and what they do by themselves."""

    def __init__(self, context: Context, uploads: Uploads) -> None:
        """Begins with no aggregation and no deadline under way; `recover` finds those of an earlier process."""
        self._context = context
        self._store = context.store.rounds
        self._uploads = uploads
        self._aggregations: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, _Timer] = {}
        self._leaving = False

    def leave(self) -> None:
        """Leaves closed rounds and deadlines to the next start: a round opened now would miss its participants."""
        self._leaving = True

    async def submit(
        self, training_id: str, number: int, num_examples: int, metrics: Mapping[str, float], incoming: Incoming
    ) -> Update:
        """Accepts an update. When it returns, the update is on disk and will be counted once.

        Raises:
            FedroundError: The update is refused, as `RoundVerbs.admit` and `Uploads.receive` tell.
        """
        blob = BlobRef(str(incoming.sha256), int(incoming.size_bytes or 0))
        new = NewUpdate(training_id, number, incoming.user_id, blob, num_examples, metrics)
        try:
            admission = await self._store.admit(new)
        except (RoundNotOpen, NotInCohort, UpdateExists):
            # What an earlier try left would count against the user for a day.
            await self._uploads.abandon(incoming.user_id, incoming.upload_id)
            raise
        if admission.receipt is not None:
            return admission.receipt
        await self._uploads.receive(incoming, admission.manifest, admission.bound, admission.differences)
        update = await run_shielded(self._accept(new, RoundKind.TRAIN))
        reached("update.replying")
        return update

    async def submit_metrics(
        self, training_id: str, number: int, user_id: str, num_examples: int, metrics: Mapping[str, float]
    ) -> None:
        """Accepts a report of an evaluation round.

        Raises:
            FedroundError: The report is refused, as `RoundVerbs.submit` tells.
        """
        new = NewUpdate(training_id, number, user_id, NO_FILE, num_examples, metrics)
        await run_shielded(self._accept(new, RoundKind.EVALUATE))

    async def explain(self, training_id: str, number: int | None, actor_id: str) -> Explanation:
        """Returns a round with what is known of its members.

        Raises:
            FedroundError: As `RoundVerbs.explain` tells.
        """
        found = await self._store.explain(training_id, number, actor_id)
        now = self._context.clock.now()
        is_open = found.round.state is RoundState.OPEN
        members = tuple(self._look_at(member, found.round, now) for member in found.members)
        arrivals = [one.member.arrive_time or one.forecast for one in members]
        forecast_end = forecast.end(arrivals, found.round.expected, found.round.deadline) if is_open else None
        return Explanation(found, members, forecast_end)

    async def dealt(self, training_id: str, number: int, user_id: str) -> tuple[ModelInfo, BlobRef]:
        """Returns the model that a user was dealt in a round of daisy chaining.

        Raises:
            FedroundError: As `RoundVerbs.dealt` tells.
        """
        return await self._store.dealt(training_id, number, user_id)

    async def recover(self) -> None:
        """Takes up what an earlier process left; before serving."""
        for left in await self._store.unfinished():
            if left.state is RoundState.OPEN:
                due = left.deadline is not None and self._context.clock.now() >= left.deadline
                await self._judge(left.training_id, left.number, left.attempt, due=due)
                reached("start.judged")
        await self.reconcile()

    async def reconcile(self) -> None:
        """Takes up every round that waits for something which is not under way, and touches no other.

        Such a round is left behind when the database goes away at a commit, or between a commit and what follows it.
        """
        for left in await self._store.unfinished():
            if self._take_up(left):
                self._context.hub.notify(left.training_id)

    def aggregate_soon(self, training_id: str) -> None:
        """Starts the aggregation of a closed round in the background, unless it is under way."""
        # The one under way may have looked for closed rounds just before this one was closed.
        self._again.add(training_id)
        if training_id not in self._aggregations and not self._leaving:
            self._aggregations.add(training_id)
            self._context.tasks.create_task(self._aggregate(training_id), name=f"aggregate {training_id}")

    async def follow_up(self, training_id: str) -> None:
        """Starts what the training's current round waits for, after a commit that may have closed or opened one."""
        try:
            current = await self._store.current(training_id)
        except Unavailable as error:
            # The commit stands, and the caller need not hear of this: `reconcile` does the same soon.
            log.warning("what follows in training %s: %s", training_id, error)
            return
        if current is None or current.state.is_over:
            self.forget(training_id)
        else:
            self._take_up(current)

    def forget(self, training_id: str) -> None:
        """Disarms a training's deadline, and forgets how far its updates have come."""
        self._disarm(training_id)
        self._uploads.forget(training_id)

    def _disarm(self, training_id: str) -> None:
        timer = self._timers.pop(training_id, None)
        if timer is not None:
            timer.task.cancel()

    def _look_at(self, member: RoundMember, found: Round, now: datetime) -> MemberView:
        presence, missing = self._context.presence, member.arrive_time is None
        return MemberView(
            member=member,
            last_seen=presence.last_seen(member.user_id, now) or member.seen_time,
            subscribed=presence.is_listening(member.user_id),
            uploaded_bytes=self._uploads.progress(found.training_id, found.number, member.user_id) if missing else 0,
            forecast=forecast.arrival(member.ask_time, member.durations, now) if missing else None,
        )

    def _take_up(self, current: Round | UnfinishedRound) -> bool:
        """Starts what a round waits for; tells whether that was not under way."""
        if current.state is RoundState.AGGREGATING:
            idle = current.training_id not in self._aggregations
            self.aggregate_soon(current.training_id)
            return idle
        return current.deadline is not None and self._arm(current, current.deadline)

    def _arm(self, current: Round | UnfinishedRound, deadline: datetime) -> bool:
        """Arms the timer of an open round's deadline, in place of that of a round, or of a try, before it."""
        training_id, number, attempt = current.training_id, current.number, current.attempt
        armed = self._timers.get(training_id)
        # A caller may have looked before the latest round was opened, or repeated.
        if armed is not None and (armed.number, armed.attempt) >= (number, attempt):
            return False
        self._disarm(training_id)
        left = deadline - self._context.clock.now()
        waiting = self._expire(training_id, number, attempt, left)
        task = self._context.tasks.create_task(waiting, name=f"deadline {training_id}")
        self._timers[training_id] = _Timer(number, attempt, task)
        return True

    async def _accept(self, new: NewUpdate, kind: RoundKind) -> Update:
        update, closed = await self._store.submit(self._context.new_id(), new, kind, self._context.clock.now())
        reached("update.accepted")
        self._context.hub.notify(for_actor(new.training_id))
        if closed:
            self.aggregate_soon(new.training_id)
        return update

    async def _judge(self, training_id: str, number: int, attempt: int, *, due: bool) -> None:
        now = self._context.clock.now()
        if await self._store.judge(training_id, number, due=due, now=now, attempt=attempt):
            self.aggregate_soon(training_id)
        self._context.hub.notify(training_id)

    async def _expire(self, training_id: str, number: int, attempt: int, left: timedelta) -> None:
        acting.set("")
        await self._context.clock.sleep(left)
        reached("deadline.fired")
        while True:
            if self._leaving:
                return
            try:
                await run_shielded(self._judge(training_id, number, attempt, due=True))
            except Unavailable as error:
                log.warning("deadline of training %s: %s", training_id, error)
                await self._context.clock.sleep(RETRY)
            else:
                reached("deadline.judged")
                break
        timer = self._timers.get(training_id)
        if timer is not None and (timer.number, timer.attempt) == (number, attempt):
            # First: arming the next one would cancel this task.
            del self._timers[training_id]
            await self.follow_up(training_id)

    async def _aggregate(self, training_id: str) -> None:
        # Who sent the last update began this, and is not who makes the model.
        acting.set("")
        try:
            while not self._leaving:
                self._again.discard(training_id)
                try:
                    task = await self._store.find_aggregation(training_id)
                    if task is not None:
                        reached("aggregation.found")
                        await self._finish(task)
                    elif training_id not in self._again:
                        return
                except PASSING as error:
                    log.warning("aggregation of training %s: %s", training_id, error)
                    seconds = getattr(error, "retry_seconds", None)
                    await self._context.clock.sleep(timedelta(seconds=seconds) if seconds else RETRY)
                    # It may have been a commit that went through all the same.
                    self._context.hub.notify(training_id)
        finally:
            self._aggregations.discard(training_id)

    async def _finish(self, task: AggregationTask) -> None:
        """Aggregates a closed round and commits the result, or the failure."""
        closed = task.round
        now = self._context.clock.now
        try:
            result = await self._compute(task)
            if self._leaving:
                return
            await self._store.commit(closed.training_id, closed.number, closed.epoch, result, now())
            reached("aggregation.committed")
        except Exception as error:
            # A lost file is lost.
            if isinstance(error, PASSING) and not isinstance(error, FileNotFoundError):
                raise
            # One training's round must not end the server, which would meet it again after each restart.
            error_id = self._context.new_id()
            log.exception("round %s of training %s failed, id %s", closed.number, closed.training_id, error_id)
            # Other errors may tell of the server's files.
            message = str(error) if isinstance(error, AggregationFailed) else INTERNAL.format(closed.number, error_id)
            await self._store.fail(
                closed.training_id, closed.number, closed.epoch, "AGGREGATION_FAILED", message, now()
            )
        self._context.hub.notify(closed.training_id)
        await self.follow_up(closed.training_id)

    async def _compute(self, task: AggregationTask) -> BlobRef | None:
        """Makes the file of a closed round; reports make none, nor do local models that are dealt."""
        kind, aggregation = task.round.kind, task.spec.aggregation
        dealt = kind is RoundKind.TRAIN and not averages(aggregation, task.round.step)
        if dealt or kind is RoundKind.EVALUATE:
            return None
        job = AggregationJob(
            model=task.model,
            updates=tuple(update.blob for update in task.updates),
            weights=tuple(update.num_examples for update in task.updates),
            algorithm=SWAG_MOMENTS if kind is RoundKind.SWAG else aggregation.algorithm,
            options=aggregation.options,
            differences=task.spec.update_precision.dtype,
        )
        with map_disk_full():
            result = await self._context.engine.aggregate(job)
        reached("aggregation.computed")
        await in_thread(self._context.blobs.commit, result)
        reached("aggregation.adopted")
        return result.blob
