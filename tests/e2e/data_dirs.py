"""Data directories of servers that were killed at a known point, written with the server's own parts."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from calls import MODEL, model_file, new_id
from contracts.blobs import put_small
from contracts.world import SPEC, World
from fedround_server.blobs import StagedRef
from fedround_server.blobs.local import LocalBlobs
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import BlobRef, Dtype, NewModel, TensorSpec
from fedround_server.domain.report import NewReport
from fedround_server.domain.training import Training
from fedround_server.domain.update import NewUpdate
from fedround_server.domain.user import Role
from fedround_server.store import Store

R = TypeVar("R")
DTYPES = {"float32": Dtype.F32, "float64": Dtype.F64, "int64": Dtype.I64}
MANIFEST = {name: TensorSpec(DTYPES[tensor.dtype.name], tensor.shape) for name, tensor in MODEL.items()}


@dataclass
class DataDirectory:
    """A data directory without its server. Users are known by their ids: those are their tokens, too.

    Attributes:
        small: Whether files are stored like small ones, in the journal.
    """

    store: Store
    blobs: LocalBlobs
    world: World
    now: datetime
    small: bool = False

    async def running(self, clients: int, **spec: Any) -> tuple[str, list[str], Training]:
        """An actor, its clients, and their training, which was started at `now`."""
        actor, users = await self.world.user(Role.ACTOR), await self.world.users(clients)
        model = NewModel("model", "", MANIFEST, self.keep(model_file()))
        wanted = replace(SPEC, **{"client_ids": tuple(users), "target_num_updates": 1, **spec})
        made = await self.store.trainings.create(new_id(), actor, wanted, model, new_id(), Quotas(), self.now)
        return actor, users, await self.store.trainings.start(made.training_id, actor, None, self.now)

    async def submit(self, training: Training, number: int, user: str, data: bytes | None = None) -> bool:
        """An update (or, without a file, a report) that was accepted; returns whether it closed the round."""
        submissions, metrics = self.store.submissions, {"accuracy": 0.5}
        if data is None:
            report = NewReport(training.training_id, number, user, 1, metrics)
            return (await submissions.submit_report(new_id(), report, self.now))[1]
        update = NewUpdate(training.training_id, number, user, self.keep(data), 1, metrics)
        return (await submissions.submit_update(new_id(), update, self.now))[1]

    def keep(self, data: bytes) -> BlobRef:
        if self.small:
            return put_small(self.blobs, data)
        with self.blobs.writer(StagedRef(new_id())) as writer:
            writer.write(data)
            writer.sync()
            self.blobs.commit(writer.staged)
            return writer.staged.blob


def fill_data_dir(data_dir: Path, database: str, now: datetime, prepare: Callable[[DataDirectory], Awaitable[R]]) -> R:
    """Fills a data directory and its database."""
    data_dir.mkdir()

    async def run() -> R:
        with Store(database or data_dir / "fedround.db") as store:
            return await prepare(DataDirectory(store, LocalBlobs(data_dir), World(store), now))

    return asyncio.run(run())
