"""A training with every kind of round, by the server's parts in this process, on storage of which a call may fail.

A client tries again what failed. A server that stops is started again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from peewee import PeeweeException

from aggregations import fed_dc
from calls import digest
from chaos import tensors
from chaos.facts import load
from chaos.faults import Fault, Storage, failing
from chaos.history import History
from chaos.invariants import Violation, check
from chaos.server_process import TIMEOUT_SECONDS
from contracts.blobs import chunk_of
from contracts.world import SPEC
from fedround_server.blobs import BlobFiles
from fedround_server.blobs.local import LocalBlobs
from fedround_server.coordinator import Context, Coordinator
from fedround_server.coordinator.uploads.receive import Incoming
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import FedroundError, UserExists, UserNotFound
from fedround_server.domain.training import Training, TrainingState
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role
from fedround_server.engine import worker
from fedround_server.engine.jobs import AggregationJob, CheckJob, CheckResult, StagedResult
from fedround_server.store import Store
from fedround_server.wakeups import Hub

R = TypeVar("R")
TRIES = 5
TENSORS = {"weight": ("F32", (2, 3)), "half": ("BF16", (3,)), "norm.num_batches_tracked": ("I64", ())}
CHAIN = fed_dc(daisy_period=1, aggregation_period=2, seed=3)
SWAG = Swag(samples=1, rank=1)


class InProcess:
    """Does the worker's jobs here, where their calls can fail."""

    def __init__(self, files: BlobFiles) -> None:
        self._files = files

    async def check(self, job: CheckJob) -> CheckResult:
        return worker.run_check(self._files, job)

    async def aggregate(self, job: AggregationJob) -> StagedResult:
        return worker.run_aggregation(self._files, job)


class ImpatientClock:
    """The machine's clock, whose sleeps are short once something has failed, so that retries come soon."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        # Nothing repeats itself before something fails: else the calls could not be numbered.
        while not self._storage.fired.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.005)


class Scenario:
    """The actions of an actor and its clients, and what they received."""

    def __init__(self, data_dir: Path, database: str, storage: Storage, history: History) -> None:
        self.data_dir = data_dir
        self.stops = 0
        self._database = database
        self._storage = storage
        self._history = history
        self._draw = Random(1)
        self._done: dict[str, Any] = {}

    async def run(self) -> None:
        """Runs to the end, with as many restarts as it takes; then one more, which finds nothing to do."""
        await self._run_server(self._run_trainings)
        await self._run_server(_rest)

    async def _run_server(self, work: Callable[[Coordinator], Awaitable[None]]) -> None:
        try:
            async with self._server() as coordinator:
                await work(coordinator)
        except* (OSError, FedroundError, PeeweeException):
            # It stopped loudly; since one call fails, it does so once.
            self.stops += 1
            assert self.stops == 1
        else:
            return
        await self._run_server(work)

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[Coordinator]:
        self.data_dir.mkdir(exist_ok=True)
        with Store(self._database or self.data_dir / "fedround.db") as store:
            try:
                async with asyncio.TaskGroup() as tasks:
                    clock, blobs = ImpatientClock(self._storage), LocalBlobs(self.data_dir)
                    context = Context(store, blobs, InProcess(blobs.files), Hub(), tasks, clock=clock)  # type: ignore[arg-type]
                    coordinator = Coordinator(context)
                    await coordinator.recover()
                    yield coordinator
                    await coordinator.close()
                    raise _Stop
            except* _Stop:
                pass

    async def _run_trainings(self, coordinator: Coordinator) -> None:
        actor = await self._once("actor", lambda: self._user(coordinator, "actor", Role.ACTOR))
        clients = [
            await self._once(name, lambda name=name: self._user(coordinator, name, Role.CLIENT))
            for name in ("one", "two", "three")
        ]
        await self._train(coordinator, actor, clients)
        await self._remove(coordinator, actor, clients)

    async def _train(self, coordinator: Coordinator, actor: str, clients: list[str]) -> None:
        """A chain of two rounds, an evaluation, and moments."""
        spec = replace(
            SPEC,
            target_num_updates=1,
            metric_names=("accuracy",),
            client_ids=tuple(clients[:2]),
            aggregation=CHAIN,
            uncertainty=SWAG,
            request_id="11111111-1111-4111-8111-111111111111",
        )
        file = tensors.write(tensors.fill(TENSORS, Random(0)))
        trainings = coordinator.trainings
        made = await self._try(lambda: trainings.create(actor, spec, incoming(actor, file)))
        id_ = made.training_id
        self._record("created", training_id=id_, request_id=spec.request_id, model_id=made.model_id)
        await self._try(lambda: trainings.register(id_, actor, clients))
        await self._try(lambda: trainings.start(id_, actor, spec.request_id))
        self._record("started", training_id=id_)
        for number, kind in enumerate(("CHAINED", "CHAINED", "EVALUATE", "SWAG")):
            await self._until(coordinator, id_, actor, lambda training, number=number: training.round >= number)
            for client in clients:
                await self._contribute(coordinator, id_, number, client, kind)
        after = await self._until(coordinator, id_, actor, lambda training: training.state.is_ended)
        assert after.state is TrainingState.COMPLETED, after.failure

    async def _contribute(
        self, coordinator: Coordinator, training_id: str, number: int, user_id: str, kind: str
    ) -> None:
        draw = Random(f"{number} {user_id}")
        facts = {"training_id": training_id, "round": number, "user_id": user_id, "num_examples": draw.randint(1, 99)}
        examples, metrics = facts["num_examples"], {"accuracy": draw.random()}
        if kind == "EVALUATE":
            await self._try(
                lambda: coordinator.submissions.submit_metrics(training_id, number, user_id, examples, metrics)  # type: ignore[arg-type]
            )
            self._record("report", **facts, metrics=metrics)
            return
        drawn = tensors.moments(TENSORS, 1, draw) if kind == "SWAG" else tensors.fill(TENSORS, draw)
        file = tensors.write(drawn)
        upload_id = f"22222222-2222-4222-8222-{number:012}" if number % 2 else None

        async def submit() -> Any:
            offset = 0 if upload_id is None else await coordinator.uploads.committed_size(user_id, upload_id)
            sent = incoming(user_id, file, upload_id, offset, training_id)
            return await coordinator.submissions.submit(training_id, number, examples, metrics, sent)  # type: ignore[arg-type]

        update = await self._try(submit)
        accepted = round(update.accept_time.timestamp() * 1_000_000)
        sha256 = update.blob.sha256
        self._record(
            "receipt", **facts, update_id=update.update_id, sha256=sha256, accept_time=accepted, metrics=metrics
        )

    async def _remove(self, coordinator: Coordinator, actor: str, clients: list[str]) -> None:
        """A second training loses a participant and a user, and is removed."""
        spec = replace(SPEC, client_ids=tuple(clients), request_id="33333333-3333-4333-8333-333333333333")
        file = tensors.write(tensors.fill(TENSORS, Random(2)))
        trainings = coordinator.trainings
        made = await self._try(lambda: trainings.create(actor, spec, incoming(actor, file)))
        await self._try(lambda: trainings.start(made.training_id, actor, spec.request_id))
        await self._contribute(coordinator, made.training_id, 0, clients[0], "TRAIN")
        await self._gone(lambda: coordinator.remove_user(clients[1], force=False), UserNotFound)
        self._record("user_removed", user_id=clients[1])
        await self._try(lambda: trainings.remove(made.training_id, actor, force=True))
        self._record("removed", training_id=made.training_id)

    async def _user(self, coordinator: Coordinator, name: str, role: Role) -> str:
        """Creates a user; after a lost reply under another name, as the token of the first is unknown."""
        for attempt in range(TRIES):
            try:
                view, _ = await coordinator.users.create(f"{name} {attempt}", role, None, ())
            except UserExists:
                raise
            except FedroundError:
                continue
            self._record("user", user_id=view.user.user_id)
            return view.user.user_id
        raise AssertionError(name)

    async def _once(self, name: str, make: Callable[[], Awaitable[R]]) -> R:
        """Makes something once, whatever the number of restarts."""
        if name not in self._done:
            self._done[name] = await make()
        return self._done[name]  # type: ignore[no-any-return]

    async def _try(self, call: Callable[[], Awaitable[R]]) -> R:
        """Does what clients do: they try again, and only what failed."""
        for _ in range(TRIES - 1):
            try:
                return await call()
            except (OSError, FedroundError):
                assert self._storage.fired.is_set()
        return await call()

    async def _gone(self, call: Callable[[], Awaitable[object]], gone: type[FedroundError]) -> None:
        """Removes something; who tries again may find it gone."""
        tries = 0

        async def remove() -> None:
            nonlocal tries
            tries += 1
            try:
                await call()
            except gone:
                assert tries > 1 or self.stops

        await self._try(remove)

    async def _until(
        self, coordinator: Coordinator, training_id: str, actor: str, holds: Callable[[Training], bool]
    ) -> Training:
        """Waits until something holds of a training: for a wake-up, or for a while when one may have been lost."""
        hub = coordinator._context.hub
        with hub.waiter() as waiter:
            waiter.follow([training_id])
            while not holds(found := await self._try(lambda: coordinator.reads.training(training_id, actor))):
                await waiter.wait(0.01 if self._storage.fired.is_set() else 1)
            return found

    def _record(self, kind: str, **facts: Any) -> None:
        self._history.add(kind, **facts)


def run(storage: Storage, database: str, history: History) -> None:
    """Runs the scenario to its end."""
    asyncio.run(asyncio.wait_for(Scenario(storage.folder, database, storage, history).run(), TIMEOUT_SECONDS))


def survive(fault: Fault | None, folder: Path, database: str) -> tuple[Storage, list[Violation]]:
    """Runs the scenario with a fault; returns what was called, and what is wrong in the end."""
    folder.mkdir()
    storage, history = Storage(folder / "data", fault), History(folder / "history.jsonl")
    with failing(storage):
        run(storage, database, history)
    history.close()
    return storage, check(load(database, folder / "data"), history)


async def _rest(coordinator: Coordinator) -> None:
    """Does nothing."""


class _Stop(Exception):
    """Stops a server gracefully."""


def incoming(
    user_id: str, data: bytes, upload_id: str | None = None, offset: int = 0, training_id: str | None = None
) -> Incoming:
    """A file in two chunks."""

    async def chunks() -> AsyncIterator[Chunk]:
        middle = (offset + len(data)) // 2
        for chunk in (data[offset:middle], data[middle:]):
            if chunk:
                yield chunk_of(chunk)

    return Incoming(user_id, chunks(), digest(data), len(data), upload_id, offset, training_id)
