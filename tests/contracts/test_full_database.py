"""A SQLite file that cannot grow: a change is whole or not there, and the server goes on when there is room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.world import World
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.tables.base import database_proxy
from fedround_server.store.tables.schema import TABLES

MANY = 200


def rows() -> dict[str, int]:
    return {table.__name__: table.select().count() for table in TABLES}


async def pragma(store: Store, text: str) -> int:
    return int(await store._database.run(lambda: database_proxy.obj.execute_sql(f"PRAGMA {text}").fetchone()[0]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "fedround.db") as store:
        yield store


async def create_until_rejected(world: World, actor: str, clients: list[str]) -> None:
    """Creates trainings: rows of several tables, so that a change that were half done would show."""
    while True:
        await world.training(actor, clients)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


async def check(store: Store) -> None:
    """Looks whether all that is there is whole."""
    found = await store._database.run(rows)
    assert found["ParticipantRow"] == MANY * found["TrainingRow"]
    assert found["ModelRow"] == found["ModelVersionRow"] == found["TrainingRow"]


async def test_a_database_without_room_changes_nothing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    world = World(store)
    actor, clients = await world.user(Role.ACTOR), await world.users(MANY)
    at_most = await pragma(store, "max_page_count")
    # Room for a part of one.
    await pragma(store, f"max_page_count = {await pragma(store, 'page_count') + 10}")
    with pytest.raises(StoreUnavailable, match="try again"):
        await create_until_rejected(world, actor, clients)
    assert "the database does not answer: database or disk is full" in caplog.text
    await check(store)
    await pragma(store, f"max_page_count = {at_most}")
    await world.training(actor, clients)
    await check(store)


async def test_a_full_file_system_changes_nothing(small_disk: Path) -> None:
    with Store(small_disk / "fedround.db") as store:
        world = World(store)
        actor, clients = await world.user(Role.ACTOR), await world.users(MANY)
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk / "filler")
        with pytest.raises(StoreUnavailable, match="try again"):
            await create_until_rejected(world, actor, clients)
        await check(store)
        (small_disk / "filler").unlink()
        await world.training(actor, clients)
    with Store(small_disk / "fedround.db") as store:
        await check(store)
