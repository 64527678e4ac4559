"""What is promised is on disk first: how SQLite is configured to write, and in which order files and rows are kept."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calls import digest, model_file
from contracts.blobs import chunk_of
from contracts.coordination import FakeEngine, coordinating
from contracts.world import SPEC, World
from fedround_server.blobs import read_entries
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.uploads.receive import Incoming
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.user import Role
from fedround_server.engine import worker
from fedround_server.engine.jobs import AggregationJob, StagedResult
from fedround_server.host.secret_file import write_secret
from fedround_server.store import Store
from fedround_server.store.tables.base import database_proxy


class InProcess(FakeEngine):
    """Aggregates like the worker does."""

    async def aggregate(self, job: AggregationJob) -> StagedResult:
        return worker.run_aggregation(self.files, job)


class Diary:
    """What was done to the disk, in order: syncs and renames of Python, and the statements of SQLite."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.entries: list[tuple[str, str]] = []
        self._folder = folder
        sync, sync_data, rename = os.fsync, os.fdatasync, os.replace

        def noted_sync(descriptor: int) -> None:
            sync(descriptor)
            self.note("sync", self._path(Path(f"/proc/self/fd/{descriptor}").readlink()))

        def noted_data_sync(descriptor: int) -> None:
            sync_data(descriptor)
            for file in read_entries(Path(f"/proc/self/fd/{descriptor}").readlink()):
                self.note("journaled", file.blob.sha256)

        def noted_rename(source: Any, target: Any) -> None:
            rename(source, target)
            self.note("rename", f"{self._path(source)} > {self._path(target)}")

        patch.setattr(os, "fsync", noted_sync)
        patch.setattr(os, "fdatasync", noted_data_sync)
        patch.setattr(os, "replace", noted_rename)

    async def read_statements(self, store: Store) -> None:
        def listen() -> None:
            database_proxy.obj.connection().set_trace_callback(lambda text: self.note("sql", text))

        await store._database.run(listen)

    def note(self, what: str, text: str) -> None:
        self.entries.append((what, text))

    def find(self, what: str, *words: str) -> int:
        """Where the first such entry is."""
        return next(
            number
            for number, (kind, text) in enumerate(self.entries)
            if kind == what and all(word in text for word in words)
        )

    def check(self, sha256: str, statement: str, answer: str) -> None:
        """The file was synced, then renamed, then its folder was synced, then the row was committed, then answered."""
        renamed = self.find("rename", f"> objects/{sha256[:2]}/{sha256}")
        source = self.entries[renamed][1].partition(" ")[0]
        folder = self.entries.index(("sync", f"objects/{sha256[:2]}"), renamed)
        written = self.find("sql", statement, sha256)
        committed = self.entries.index(("sql", "COMMIT"), written)
        assert self.find("sync", source) < renamed < folder < written < committed < self.find("answer", answer)

    def check_small(self, sha256: str, statement: str, answer: str) -> None:
        """The journal was synced with the file, then it got its name, then the row was committed, then answered."""
        renamed = self.find("rename", f"> objects/{sha256[:2]}/{sha256}")
        written = self.find("sql", statement, sha256)
        committed = self.entries.index(("sql", "COMMIT"), written)
        journal = self.find("sync", "journal")
        assert journal < self.find("journaled", sha256) < renamed < written < committed < self.find("answer", answer)

    def _path(self, path: Any) -> str:
        return str(Path(path).relative_to(self._folder))


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "fedround.db") as store:
        yield store


async def test_sqlite_syncs_each_commit(sqlite: Store) -> None:
    def pragma(name: str) -> Any:
        return database_proxy.obj.execute_sql(f"PRAGMA {name}").fetchone()[0]

    assert await sqlite._database.run(lambda: (pragma("journal_mode"), pragma("synchronous"))) == ("wal", 2)


async def test_sqlite_begins_each_transaction_as_a_writer(
    sqlite: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary, world = Diary(tmp_path, monkeypatch), World(sqlite)
    await diary.read_statements(sqlite)
    actor, (client,), training = await world.running(1)
    await world.submit(training.training_id, 0, client)
    await sqlite.trainings.get(training.training_id, actor)
    begins = [text for _, text in diary.entries if text.startswith("BEGIN")]
    assert len(begins) > 5
    assert set(begins) == {"BEGIN IMMEDIATE"}


async def test_the_admins_token_is_on_disk_before_the_admin(
    sqlite: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary(tmp_path, monkeypatch)
    async with coordinating(sqlite, tmp_path) as coordination:
        await diary.read_statements(sqlite)
        keep = partial(write_secret, tmp_path / "admin.token")
        await coordination.coordinator.users.bootstrap(keep, lambda: None)
    synced = diary.entries.index(("sync", "admin.token"))
    assert synced < diary.entries.index(("sync", "."), synced) < diary.find("sql", 'INSERT INTO "users"')


async def test_what_a_full_database_rejects_is_accepted_when_there_is_room(sqlite: Store) -> None:
    def limit(pages: int) -> None:
        database_proxy.obj.execute_sql(f"PRAGMA max_page_count = {pages}")

    def pages() -> int:
        return int(database_proxy.obj.execute_sql("PRAGMA page_count").fetchone()[0])

    world = World(sqlite)
    actor, clients, training = await world.running(30)
    await sqlite._database.run(lambda: limit(pages() + 2))
    metrics = {f"metric {number}": 0.5 for number in range(90)}
    rejected = []
    for client in clients:
        try:
            await world.submit(training.training_id, 0, client, metrics=metrics)
        except StoreUnavailable:
            rejected.append(client)
    after = await sqlite.trainings.get(training.training_id, actor)
    assert 0 < len(rejected) < len(clients)
    assert after.updates_arrived == len(clients) - len(rejected)

    await sqlite._database.run(lambda: limit(1 << 20))
    closed = [(await world.submit(training.training_id, 0, client, metrics=metrics))[1] for client in clients]
    assert closed == [False] * (len(clients) - 1) + [True]


@pytest.mark.parametrize("numbers", [1, 300_000])
async def test_files_are_on_disk_before_the_rows_and_the_answers_that_promise_them(
    sqlite: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    more = {"more": np.zeros(numbers, np.float32)}
    diary = Diary(tmp_path, monkeypatch)
    async with coordinating(sqlite, tmp_path) as coordination:
        coordinator = Coordinator(replace(coordination.context, engine=InProcess(coordination.engine.files)))
        actor, clients = await coordination.world.user(Role.ACTOR), await coordination.world.users(2)
        await diary.read_statements(sqlite)

        initial, updates = model_file(**more), [model_file(1, **more), model_file(3, **more)]
        spec = replace(SPEC, target_num_updates=1, client_ids=tuple(clients))
        made = await coordinator.trainings.create(actor, spec, sent(actor, initial))
        diary.note("answer", "created")
        await coordinator.trainings.start(made.training_id, actor, None)
        for client, update in zip(clients, updates, strict=True):
            await coordinator.submissions.submit(made.training_id, 0, 1, {}, sent(client, update, made.training_id))
            diary.note("answer", f"receipt {client}")
        with coordination.context.hub.waiter() as waiter:
            waiter.follow([made.training_id])
            while (await sqlite.trainings.get(made.training_id, actor)).model_version == 0:
                await waiter.wait(30)
        diary.note("answer", "finished")
        result = (await sqlite.models.get_version(made.model_id, 1, actor)).blob.sha256

    diary.check(digest(initial), 'INSERT INTO "model_version"', "created")
    for client, update in zip(clients, updates, strict=True):
        check = diary.check_small if numbers == 1 else diary.check
        check(digest(update), 'INSERT INTO "round_update"', f"receipt {client}")
    diary.check(result, 'INSERT INTO "model_version"', "finished")


def sent(user_id: str, data: bytes, training_id: str | None = None) -> Incoming:
    async def chunks() -> AsyncIterator[Chunk]:
        for start in range(0, len(data), 1 << 20):
            yield chunk_of(data[start : start + (1 << 20)])

    return Incoming(user_id, chunks(), digest(data), len(data), training_id=training_id)
