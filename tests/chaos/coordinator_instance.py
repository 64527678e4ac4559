"""A coordinator that loses all its memory when it is killed, and restarts on the same database, files and clock."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from chaos.rules import result_file
from fedround_server.blobs import BlobFiles
from fedround_server.blobs.local import LocalBlobs
from fedround_server.coordinator import Context, Coordinator
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.model import BlobRef
from fedround_server.engine.jobs import AggregationJob, CheckJob, CheckResult, PredictionJob, StagedResult
from fedround_server.store import Store
from fedround_server.wakeups import Hub


class Clocks:
    """A wall clock that can be set, and a monotonic clock for waiting."""

    def __init__(self) -> None:
        self.passed = timedelta(0)
        self._set = timedelta(0)
        self._sleepers: list[tuple[timedelta, asyncio.Event]] = []

    @property
    def sleeping(self) -> int:
        return sum(not woken.is_set() for _, woken in self._sleepers)

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + self.passed + self._set

    async def sleep(self, duration: timedelta) -> None:
        sleeper = (self.passed + duration, asyncio.Event())
        self._sleepers.append(sleeper)
        self.advance(timedelta(0))
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers.remove(sleeper)

    def advance(self, duration: timedelta) -> None:
        self.passed += duration
        for until, woken in self._sleepers:
            if until <= self.passed:
                woken.set()

    def jump(self, duration: timedelta) -> None:
        self._set += duration


class Engine:
    """Makes a file that names its inputs; waits while `may_end` is not set."""

    def __init__(self, files: BlobFiles) -> None:
        self.files = files
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.waiting = 0

    async def check(self, job: CheckJob) -> CheckResult:
        return CheckResult()

    async def aggregate(self, job: AggregationJob) -> StagedResult:
        if not self.may_end.is_set():
            self.waiting += 1
            await self.may_end.wait()
            self.waiting -= 1
        updates = [(blob.sha256, weight) for blob, weight in zip(job.updates, job.weights, strict=True)]
        content = result_file(job.model.sha256, updates)
        with self.files.stage() as (staged, path):
            path.write_bytes(content)
        blob = BlobRef(hashlib.sha256(content).hexdigest(), len(content))
        return StagedResult(staged, blob, blob)

    async def predict(self, job: PredictionJob) -> Any:
        raise AssertionError("no test predicts here")


@dataclass
class Fault:
    """What happens at the n-th transaction from now, before it begins or when it has committed."""

    number: int
    committed: bool
    kills: bool
    reached: asyncio.Event = field(default_factory=asyncio.Event)


class CoordinatorInstance:
    """One instance of the coordinator, from its start to its end, which may be a kill."""

    def __init__(self, database: str | Path, folder: Path, clocks: Clocks, new_id: Callable[[], str]) -> None:
        self._store = Store(database)
        self._blobs = LocalBlobs(folder)
        self._clocks = clocks
        self._new_id = new_id
        self._closed = asyncio.Event()
        self._fault: Fault | None = None
        self.engine = Engine(self._blobs.files)

    @property
    def store(self) -> Store:
        return self._store

    async def start(self) -> None:
        self._store.__enter__()
        run = self._store._database.run

        async def may_fail(*verb: Any) -> Any:
            fault = self._fault
            if fault is None:
                return await run(*verb)
            fault.number -= 1
            if fault.number != 0:
                return await run(*verb)
            if fault.committed:
                await run(*verb)
            fault.reached.set()
            if fault.kills:
                # Until the test cancels this.
                await asyncio.Event().wait()
            raise StoreUnavailable("the database does not answer: try again")

        self._store._database.run = may_fail  # type: ignore[method-assign]
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(begun), name="coordinator")
        await asyncio.wait([begun, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not begun.done():
            self._task.result()
        await self.settle()

    async def kill(self) -> None:
        """Ends everything where it stands; a transaction in progress ends as it would in the database."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        while others:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            others = asyncio.all_tasks() - {asyncio.current_task()}
        self._blobs.close()
        self._store.__exit__(None, None, None)

    async def perform(self, call: Callable[[Coordinator], Awaitable[Any]], fault: Fault | None) -> Any:
        """Makes a call; returns its outcome, or the fault if that came first: then the outcome is lost."""
        self._fault = fault
        task = asyncio.ensure_future(call(self.coordinator))
        ends: set[asyncio.Future[Any]] = {task}
        if fault is not None and fault.kills:
            ends.add(asyncio.create_task(fault.reached.wait()))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return (task.exception() or task.result()) if task.done() else fault

    def clear_fault(self) -> None:
        """No more faults."""
        self._fault = None

    async def settle(self) -> None:
        """Waits until every task sleeps, or waits for the engine."""
        # Two further tasks run: this one, and the instance's own.
        while len(asyncio.all_tasks()) > 2 + self._clocks.sleeping + self.engine.waiting:
            assert not self._task.done(), self._task.exception()
            # A loop that does not wait at all takes the interpreter from the store's thread at each of its statements.
            await asyncio.sleep(0.0005)

    async def _run(self, begun: "asyncio.Future[None]") -> None:
        async with asyncio.TaskGroup() as tasks:
            parts = Context(
                self._store, self._blobs, self.engine, Hub(), tasks, clock=self._clocks, new_id=self._new_id
            )
            self.coordinator = Coordinator(parts)
            self.context = parts
            await self.coordinator.recover()
            begun.set_result(None)
            await self._closed.wait()
