"""Group commit: verbs that wait for the writer of SQLite share a commit, and nothing else."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import peewee
import pytest

from contracts.world import World, new_id
from fedround_server.domain.errors import StoreUnavailable, TrainingNotFound
from fedround_server.domain.update import Update
from fedround_server.store import Store
from fedround_server.store.tables.base import database_proxy
from fedround_server.store.tables.schema import UpdateRow

CLIENTS = 6


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "fedround.db") as store:
        yield store


async def trace(store: Store, callback: Callable[[str], None] | None) -> None:
    await store._database.run(lambda: database_proxy.obj.connection().set_trace_callback(callback))


async def together(store: Store, *calls: Awaitable[Any]) -> list[Any]:
    """Runs verbs as one group; returns their results and errors."""
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def occupy() -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    store._database._executor.submit(occupy)
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    release.set()
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_they_share_a_commit_and_one_that_fails_undoes_itself_alone(world: World, store: Store) -> None:
    _, users, training = await world.running(CLIENTS)
    statements: list[str] = []
    await trace(store, statements.append)
    statements.clear()
    submits = [world.submit(training.training_id, 0, user) for user in users]
    unrelated = world.submit(training.training_id, 0, new_id())
    first, *others, failed, last = await together(store, *submits[:-1], unrelated, submits[-1])
    await trace(store, None)
    assert isinstance(failed, TrainingNotFound)
    assert all(isinstance(update, Update) and not closed for update, closed in [first, *others])
    assert last[1]
    assert [text for text in statements if text in ("BEGIN IMMEDIATE", "COMMIT")][:2] == ["BEGIN IMMEDIATE", "COMMIT"]
    inserted = [number for number, text in enumerate(statements) if text.startswith('INSERT INTO "round_update"')]
    # Those before the one that fails share statements.
    assert len(inserted) == 2
    assert statements.index("COMMIT") > inserted[-1]


async def test_one_that_fails_behind_its_writes_leaves_no_trace(world: World, store: Store) -> None:
    (_, (user,), training), (_, (other,), another) = await world.running(1), await world.running(1)

    async def broken() -> None:
        def verb() -> None:
            UpdateRow.create(
                **dict.fromkeys(("update_id", "training_id", "user_id"), "x"),
                number=0,
                sha256=None,
                size_bytes=0,
                num_examples=1,
                metrics={},
                accept_time=world.now,
            )
            raise ValueError("no")

        await store._database.run(verb)

    statements: list[str] = []
    await trace(store, statements.append)
    statements.clear()
    submits = world.submit(training.training_id, 0, user), world.submit(another.training_id, 0, other)
    first, failed, last = await together(store, submits[0], broken(), submits[1])
    await trace(store, None)
    assert isinstance(failed, ValueError)
    kept, undone = ["SAVEPOINT verb", "RELEASE verb"], ["SAVEPOINT verb", "ROLLBACK TO verb"]
    ends = [text for text in statements if text.split()[0] in ("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT")]
    assert ends[:8] == ["BEGIN IMMEDIATE", *kept, *undone, *kept, "COMMIT"]
    assert (first[1], last[1]) == (True, True)
    rows = await store._database.run(lambda: [row.user_id for row in UpdateRow.select()])
    assert sorted(rows) == sorted((user, other))
    entries = await store.audit.read("", 0, 1000, 1000)
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.previous_hash for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]


async def test_without_a_commit_none_of_them_is_accepted(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, users, training = await world.running(CLIENTS)
    with monkeypatch.context() as patch:

        def fail(database: peewee.Database) -> None:
            raise peewee.OperationalError("disk I/O error")

        patch.setattr(peewee.SqliteDatabase, "commit", fail)
        failed = await together(store, *(world.submit(training.training_id, 0, user) for user in users))
    assert [type(error) for error in failed] == [StoreUnavailable] * CLIENTS
    assert await store._database.run(lambda: UpdateRow.select().count()) == 0
    closed = [(await world.submit(training.training_id, 0, user))[1] for user in users]
    assert closed == [False] * (CLIENTS - 1) + [True]


async def test_a_full_database_rejects_those_that_find_no_room(world: World, store: Store) -> None:
    def limit(pages: int) -> None:
        database_proxy.obj.execute_sql(f"PRAGMA max_page_count = {pages}")

    def pages() -> int:
        return int(database_proxy.obj.execute_sql("PRAGMA page_count").fetchone()[0])

    actor, users, training = await world.running(30)
    await store._database.run(lambda: limit(pages() + 2))
    metrics = {f"metric {number}": 0.5 for number in range(90)}
    submits = [world.submit(training.training_id, 0, user, metrics=metrics) for user in users]
    found = await together(store, *submits)
    rejected = [error for error in found if isinstance(error, StoreUnavailable)]
    assert 0 < len(rejected) < len(users)
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == len(users) - len(rejected)
    assert await store._database.run(lambda: UpdateRow.select().count()) == len(users) - len(rejected)
