"""A coordinator over a real store and real files, with a clock and an engine that the test controls."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.blobs import put
from contracts.world import World, update
from fedround_server.blobs import BlobFiles, StagedBlob
from fedround_server.blobs.local import LocalBlobs
from fedround_server.coordinator import Context, Coordinator
from fedround_server.domain.aggregation import UpdateFacts
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.model import BaseAndDelta, BlobRef, VersionFile, blobs_of
from fedround_server.domain.privacy import Mechanism
from fedround_server.domain.training import Training
from fedround_server.domain.user import Role
from fedround_server.engine.format.verification import Verifier
from fedround_server.engine.jobs import AggregationJob, CheckJob, CheckResult, PredictionJob, StagedResult
from fedround_server.store import Store
from fedround_server.wakeups import Hub


class ManualClock:
    """A clock that the test advances, and sets; sleepers are not affected by what it is set to."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._set = timedelta(0)
        self._sleepers: list[tuple[timedelta, datetime, asyncio.Event]] = []
        self._slept = asyncio.Event()

    def now(self) -> datetime:
        return self._now + self._set

    def jump(self, duration: timedelta) -> None:
        """Sets the wall clock forward or back."""
        self._set += duration

    async def sleep(self, duration: timedelta) -> None:
        sleeper = (duration, self._now + duration, asyncio.Event())
        self._sleepers.append(sleeper)
        self._slept.set()
        self.advance(timedelta(0))
        try:
            await sleeper[2].wait()
        finally:
            self._sleepers.remove(sleeper)

    def advance(self, duration: timedelta) -> None:
        """Advances the time, and wakes the sleepers that are due."""
        self._now += duration
        for _, until, woken in self._sleepers:
            if until <= self._now:
                woken.set()

    async def asleep(self, until: timedelta | datetime) -> None:
        """Waits until some task sleeps for this duration, or until this time."""
        while not any(until in sleeper and not sleeper[2].is_set() for sleeper in self._sleepers):
            self._slept.clear()
            await self._slept.wait()


@dataclass
class FakeEngine:
    """Aggregates to a file of a few bytes, or fails with the given error; verifies its files first if it `reads`."""

    files: BlobFiles
    error: Exception | None = None
    reads: bool = False
    jobs: list[AggregationJob] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_end.set()

    async def check(self, job: CheckJob) -> CheckResult:
        return CheckResult()

    async def aggregate(self, job: AggregationJob) -> StagedResult:
        self.jobs.append(job)
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        for blob in (*blobs_of(job.model), *job.updates, *job.state.slots.values()) if self.reads else ():
            with Verifier(self.files.local_path(blob), blob) as verifier:
                verifier.verify(0, blob.size_bytes)
        number = len(self.jobs)
        result, slots = self._stage(f"result {number}"), job.aggregation.slots
        state = {slot: self._stage(f"{slot} {number}") for slot in slots}
        steps = {slot: job.state.steps.get(slot, 0) + 1 for slot in slots}
        report = tuple(UpdateFacts(share=weight / sum(job.weights), norm=1.5) for weight in job.weights)
        made: VersionFile = result.blob
        if job.tensors.is_partial:
            base = blobs_of(job.model)[0]
            whole = hashlib.sha256(f"{base.sha256} {result.blob.sha256}".encode()).hexdigest()
            made = BaseAndDelta(whole, base.size_bytes + result.blob.size_bytes, base, result.blob)
        return StagedResult(result.file, result.blob, made, state, steps, report)

    def _stage(self, content: str) -> StagedBlob:
        with self.files.stage() as (staged, path):
            path.write_text(content)
        return StagedBlob(staged, BlobRef(hashlib.sha256(content.encode()).hexdigest(), len(content)))

    async def epsilon(self, mechanism: Mechanism, rounds: int) -> float:
        return rounds / mechanism.noise_multiplier

    async def affordable_rounds(self, mechanism: Mechanism, budget: float) -> int:
        return int(budget * mechanism.noise_multiplier)

    async def predict(self, job: PredictionJob) -> Any:
        raise AssertionError("no test predicts here")


@dataclass(frozen=True)
class Coordination:
    """A coordinator with the parts that a test controls."""

    coordinator: Coordinator
    context: Context
    clock: ManualClock
    engine: FakeEngine
    world: World

    async def running(self, clients: int, **spec: Any) -> tuple[str, list[str], Training]:
        """Returns an actor, its clients, and their training, which has been started."""
        put(self.context.blobs, b"zeros")
        actor, users = await self.world.user(Role.ACTOR), await self.world.users(clients)
        made = await self.world.training(actor, users, **spec)
        return actor, users, await self.coordinator.trainings.start(made.training_id, actor, None)

    async def submit(self, training_id: str, number: int, user: str) -> None:
        """Stores the file of an update, and submits it."""
        new = update(training_id, number, user)
        new = replace(new, blob=put(self.context.blobs, f"{number} {user}".encode()))
        await self.coordinator.submissions._accept_update(new)
        self.context.blobs.keep(new.blob)

    async def until(self, actor: str, training_id: str, holds: Callable[[Training], bool]) -> Training:
        """Waits until a condition of a training holds, checking it at each wake-up of its subscribers."""
        with self.context.hub.waiter() as waiter:
            waiter.follow([training_id])
            while not holds(training := await self.context.store.trainings.get(training_id, actor)):
                assert await waiter.wait(100), f"no wake-up any more: {training}"
        return training


class _Done(Exception):
    """Ends the background tasks with the block."""


@asynccontextmanager
async def coordinating(store: Store, folder: Path) -> AsyncIterator[Coordination]:
    """Runs a coordinator for the time of the block."""
    clock, blobs = ManualClock(), LocalBlobs(folder)
    engine = FakeEngine(blobs.files)
    try:
        async with asyncio.TaskGroup() as tasks:
            context = Context(store, blobs, engine, Hub(), tasks, clock=clock)
            yield Coordination(Coordinator(context), context, clock, engine, World(store))
            raise _Done
    except* _Done:
        pass


def lose(patch: pytest.MonkeyPatch, verbs: type, name: str, *, committed: bool) -> None:
    """Makes the next call of a verb fail as if the database had gone: before it begins, or after its commit."""
    verb = getattr(verbs, name)

    async def lost(self: Any, *args: Any, **kwargs: Any) -> None:
        patch.setattr(verbs, name, verb)
        if committed:
            await verb(self, *args, **kwargs)
        raise StoreUnavailable("the database does not answer: try again")

    patch.setattr(verbs, name, lost)
