"""Servers of two versions and one database: which migrations leave older servers at work, and which do not."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from playhouse.migrations import Migration

from contracts.test_replicas import Other
from contracts.world import World
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store import Store
from fedround_server.store.db import migrate
from fedround_server.store.db.lease import NOW
from fedround_server.store.db.replica_session import Outdated
from later_version import CONTRACT, EXPAND, NEXT, write_migrations

OWN = NEXT - 1
on_postgres = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


class Ignore:
    """Listens to nothing."""

    def looked(self, look: object) -> None: ...

    def woken(self, topics: object) -> None: ...


@pytest.fixture
def url(database: str, tmp_path: Path) -> str:
    """A database that this version has made."""
    url = database or str(tmp_path / "fedround.db")
    with Store(url):
        pass
    return url


@pytest.fixture
def upgrade(url: str, tmp_path: Path) -> Callable[..., None]:
    """Opens the database as a later version does that has added migrations."""

    def run(*added: str) -> None:
        folder = write_migrations(tmp_path / f"migrations{len(list(tmp_path.iterdir()))}", *added)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(migrate, "MIGRATIONS", folder)
            with Store(url):
                pass

    return run


def test_each_migration_since_servers_share_databases_says_who_can_go_on() -> None:
    """Before, a database belonged to one server."""
    oldest = {one.idx: getattr(one.load(), "OLDEST", None) for one in Migration.load_directory(str(migrate.MIGRATIONS))}
    assert {number for number, found in oldest.items() if found is None} == set(range(1, 18))
    assert all(17 <= found <= number for number, found in oldest.items() if found is not None)


async def test_an_older_version_goes_on_beside_one_that_has_only_added(
    url: str, upgrade: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(EXPAND)
    caplog.clear()
    with Store(url) as store:
        actor = await World(store).user(name="alice")
        assert (await store.users.get(actor)).name == "alice"
    (line,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert f"it has {NEXT:04}_later" in line
    # The newer one again.
    upgrade(EXPAND)


def test_an_older_version_does_not_begin_behind_one_that_has_removed(url: str, upgrade: Callable[..., None]) -> None:
    upgrade(EXPAND, CONTRACT)
    message = rf"used by a newer version of fedround \(it has {NEXT + 1:04}_later\): install that version"
    with pytest.raises(RuntimeError, match=message), Store(url):
        pytest.fail("the store is open")


def test_a_migration_that_says_nothing_is_for_its_own_version(url: str, upgrade: Callable[..., None]) -> None:
    upgrade(EXPAND.replace("OLDEST", "OTHER"))
    with pytest.raises(RuntimeError, match="newer version"), Store(url):
        pytest.fail("the store is open")


@on_postgres
def test_what_older_servers_at_work_could_not_use_is_not_migrated(
    url: str, database: str, upgrade: Callable[..., None]
) -> None:
    older, newer = Other(database, schema=OWN), Other(database, schema=NEXT)
    upgrade(EXPAND)
    for _ in range(2):
        with pytest.raises(RuntimeError) as refused:
            upgrade(EXPAND, CONTRACT)
        assert f"cannot be migrated to {NEXT + 1:04}_later while older servers use it" in str(refused.value)
        assert "stop other (version 2) first" in str(refused.value)
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT oldest_schema FROM server_state").fetchone() == (OWN,)
    older.session.close()
    upgrade(EXPAND, CONTRACT)
    newer.session.close()


@on_postgres
def test_a_server_whose_lease_has_ended_does_not_go_on_with_tables_that_it_cannot_use(
    url: str, database: str, upgrade: Callable[..., None]
) -> None:
    older = Other(database, schema=OWN)
    with psycopg.connect(database, autocommit=True) as connection:
        # As after a pause: the lease of the row has ended, and it is not renewed before the migration.
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM replica FOR UPDATE")
        connection.execute("UPDATE replica SET expire_time = 0")
        connection.execute("UPDATE server_state SET oldest_schema = %s", (NEXT,))
        connection.execute("COMMIT")
    older.session._thread.join(60)
    assert not older.session.is_running
    assert "a newer version of fedround has migrated the database" in older.session.problem
    older.session.close()
    with pytest.raises(Outdated):
        Other(database, schema=OWN)
    Other(database, schema=NEXT).session.close()


@on_postgres
def test_no_server_takes_a_lease_while_a_migration_leaves_it_behind(url: str, database: str) -> None:
    with psycopg.connect(database) as migrating:
        migrating.execute("UPDATE server_state SET oldest_schema = %s", (NEXT,))
        outcomes: list[BaseException] = []

        def begin() -> None:
            try:
                Other(database, schema=OWN)
            except (Outdated, StoreUnavailable) as error:
                outcomes.append(error)

        beginning = threading.Thread(target=begin)
        beginning.start()
        until_one_waits(database, beginning)
    beginning.join()
    assert [type(outcome) for outcome in outcomes] == [Outdated]


@on_postgres
def test_a_lease_that_is_being_renewed_holds_a_migration_off(
    url: str, database: str, upgrade: Callable[..., None]
) -> None:
    row = "INSERT INTO replica VALUES ('id', 'journal', 'other', '2', %s, 0, 0, 0)"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(row, (OWN,))
    outcomes: list[str] = []

    def migrating() -> None:
        with pytest.raises(RuntimeError) as refused:
            upgrade(EXPAND, CONTRACT)
        outcomes.append(str(refused.value))

    with psycopg.connect(database) as renewing:
        renewing.execute(f"UPDATE replica SET expire_time = {NOW} + 60000000")
        thread = threading.Thread(target=migrating)
        thread.start()
        until_one_waits(database, thread)
    thread.join()
    assert ["while older servers use it" in outcome for outcome in outcomes] == [True]


def until_one_waits(database: str, thread: threading.Thread) -> None:
    """Waits until a session waits for a lock; the thread must go on."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(database, autocommit=True) as watching:
        while watching.execute(query).fetchone() != (1,):
            assert thread.is_alive()


@on_postgres
def test_a_migration_gives_way_to_transactions_that_use_the_tables(
    url: str, database: str, upgrade: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "10ms")
    pauses = threading.Semaphore(0)
    monkeypatch.setattr("time.sleep", lambda _: pauses.release())
    with psycopg.connect(database) as reading:
        reading.execute("LOCK TABLE event IN ACCESS SHARE MODE")
        migrating = threading.Thread(target=upgrade, args=(EXPAND,))
        migrating.start()
        for _ in range(3):
            assert pauses.acquire(timeout=60)
        monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 0.0)
    migrating.join()
    with Store(url):
        pass
    with psycopg.connect(database) as reading:
        assert reading.execute("SELECT count(*) FROM later").fetchone() == (0,)
        reading.execute("LOCK TABLE event IN ACCESS SHARE MODE")
        with pytest.raises(RuntimeError, match="cannot be migrated: others have used its tables for 0 s"):
            upgrade(EXPAND, CONTRACT.replace("model", "event"))
