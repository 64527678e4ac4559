"""A database becomes what the store needs, whoever opens it and however often."""

import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peewee
import pytest
from playhouse.migrations import Runner

from contracts.world import World
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store import Store
from fedround_server.store.db.connection import connect, database_name, disconnect
from fedround_server.store.db.migrate import MIGRATIONS
from fedround_server.store.tables.base import database_proxy
from fedround_server.store.tables.schema import TABLES

OPEN = "import sys; from fedround_server.store import Store\nwith Store(sys.argv[1]): pass"


def migrate(url: str, target: str) -> None:
    """Makes a database of an earlier version, whose last migration is the target."""
    database = connect(url)
    with database.connection_context():
        Runner(database, str(MIGRATIONS)).up(target=target)
    disconnect(database)


def tables(database: peewee.Database) -> dict[str, Any]:
    """What there is: columns with their types, primary keys and indexes."""
    return {
        name: (
            sorted((column.name, column.data_type, column.null) for column in database.get_columns(name)),
            sorted(database.get_primary_keys(name)),
            sorted((tuple(index.columns), index.unique) for index in database.get_indexes(name)),
        )
        for name in (table._meta.table_name for table in TABLES)
    }


def test_the_migrations_make_what_the_tables_say(empty_database: str, tmp_path: Path) -> None:
    with Store(empty_database or tmp_path / "fedround.db"):
        opened: peewee.Database = database_proxy.obj
        migrated = tables(opened)
        with opened.atomic() as transaction:
            opened.drop_tables(TABLES)
            opened.create_tables(TABLES)
            declared = tables(opened)
            transaction.rollback()
        opened.close()
    assert migrated == declared


async def test_a_second_opening_changes_nothing(empty_database: str, tmp_path: Path) -> None:
    url = empty_database or tmp_path / "fedround.db"
    with Store(url) as store:
        user = await World(store).user(name="somebody")
    with Store(url) as store:
        assert (await store.users.get(user)).name == "somebody"


def test_creation_is_logged_in_one_line(empty_database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    url = empty_database or str(tmp_path / "fedround.db")
    with Store(url):
        pass
    with Store(url):
        pass
    assert caplog.messages == [f"created the database {database_name(url)}"]


def test_a_migration_is_logged_in_one_line(
    empty_database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = empty_database or str(tmp_path / "fedround.db")
    migrate(url, "0014_shadows_and_dropped_updates")
    caplog.set_level(logging.INFO)
    newest = len(list(MIGRATIONS.glob("[0-9]*.py")))
    with Store(url):
        pass
    assert caplog.messages == [f"migrated the database {database_name(url)} from version 14 to {newest}"]


def test_three_servers_may_migrate_one_database_at_once(empty_database: str, tmp_path: Path) -> None:
    url = empty_database or str(tmp_path / "fedround.db")
    openers = [subprocess.Popen([sys.executable, "-c", OPEN, url], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(opener.communicate()[1], opener.returncode) for opener in openers] == [("", 0)] * 3
    with Store(url):
        opened: peewee.Database = database_proxy.obj
        assert {table._meta.table_name for table in TABLES} <= set(opened.get_tables())
        opened.close()


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name.split("_")[0]) for path in MIGRATIONS.glob("[0-9]*.py"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_process_has_one_open_store_at_a_time(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="close the other one first"), Store(tmp_path / "other.db"):
        pytest.fail("two stores are open")


def test_a_file_that_is_no_database_is_rejected_whole(tmp_path: Path) -> None:
    (tmp_path / "fedround.db").write_bytes(b"no database " * 1000)
    with pytest.raises(peewee.DatabaseError), Store(tmp_path / "fedround.db"):
        pytest.fail("the store is open")
    with Store(tmp_path / "other.db"):
        assert database_proxy.obj is not None


async def test_a_lost_database_is_reported_as_unavailable(store: Store, world: World) -> None:
    opened: peewee.Database = database_proxy.obj

    def fail(*_: object, **__: object) -> None:
        raise peewee.OperationalError("the server closed the connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(opened), "execute_sql", fail)
        with pytest.raises(StoreUnavailable):
            await store.credentials.admins(datetime.now(UTC))
    assert await store.credentials.admins(datetime.now(UTC)) == ([], False)
