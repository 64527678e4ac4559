"""The server lock: which servers may use a PostgreSQL database; a SQLite file belongs to the owner of its folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from calls import until
from contracts.coordination import coordinating
from fedround_server.coordinator.housekeeping import RECONCILIATION_INTERVAL
from fedround_server.store import Store
from fedround_server.store.db import server_lock
from fedround_server.store.db.lease import NOW
from fedround_server.store.db.server_lock import LOCK_KEY, ServerLock

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
HOLD = (
    "import sys; from fedround_server.store.db.server_lock import ServerLock\n"
    "ServerLock(sys.argv[1]).hold(); print(); sys.stdin.read()"
)
INSERT = """
import asyncio, sys
from fedround_server.store.db.run import Database
from fedround_server.store.tables.base import database_proxy
database = Database(sys.argv[1])
database.open()
asyncio.run(database.run(lambda: database_proxy.execute_sql("INSERT INTO slow VALUES (1)")))
"""
SLOW_COMMIT = """
CREATE TABLE slow (id int);
CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION sleep();
"""
COMMITTING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes attempts to take the lock fail at once."""
    monkeypatch.setattr(server_lock, "SETTINGS", ("SET lock_timeout = '1ms'",))


def lose(database: str) -> None:
    """Ends the session that holds the lock, as a restart of the database would."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        holders = (
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND (classid::bigint << 32) + objid::bigint = %s"
        )
        assert connection.execute(holders, (LOCK_KEY,)).fetchall() == [(True,)]


class Earlier:
    """A server of a version that has its database for itself."""

    def __init__(self, database: str) -> None:
        import psycopg

        self._session = psycopg.connect(database, autocommit=True)

    def take(self) -> bool:
        """Takes the lock, unless another server has it."""
        found = self._session.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone()
        return bool(found and found[0])

    def end(self) -> None:
        self._session.close()


def is_taken(database: str) -> bool:
    earlier = Earlier(database)
    try:
        return not earlier.take()
    finally:
        earlier.end()


def begin(database: str, files_id: str) -> ServerLock:
    """A server that has its files in a place."""
    lock = ServerLock(database, lambda: files_id)
    with lock.starting():
        claim(database, files_id)
    return lock


def claim(database: str, files_id: str) -> None:
    """Lets a database remember the place of its files, as a server does while it starts."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE server_state SET files_id = %s", (files_id,))


async def test_an_open_store_holds_the_lock(store: Store, database: str, impatient: None) -> None:
    assert is_taken(database)
    await store.hold()
    assert is_taken(database)


def test_a_closed_store_releases_the_lock(database: str) -> None:
    for _ in range(2):
        with Store(database):
            pass


def test_a_killed_process_releases_the_lock(database: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        holder.kill()
    # The database may notice only after a moment.
    until(lambda: not is_taken(database))


def test_a_server_begins_after_the_last_commit_of_a_killed_one(database: str) -> None:
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SLOW_COMMIT)
        with subprocess.Popen([sys.executable, "-c", INSERT, database]) as process:
            while connection.execute(COMMITTING).fetchall() != [(1,)]:
                assert process.poll() is None
            process.kill()
        with Store(database):
            assert connection.execute("SELECT * FROM slow").fetchall() == [(1,)]


async def test_a_lock_lost_in_a_restart_of_the_database_is_taken_again(
    store: Store, database: str, tmp_path: Path, impatient: None
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        lose(database)
        for _ in range(2):
            await coordination.clock.asleep(RECONCILIATION_INTERVAL)
            coordination.clock.advance(RECONCILIATION_INTERVAL)
        await coordination.clock.asleep(RECONCILIATION_INTERVAL)
        assert is_taken(database)


async def test_a_server_waits_for_one_that_has_the_lock_for_itself(
    store: Store, database: str, tmp_path: Path, impatient: None
) -> None:
    earlier = Earlier(database)
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        lose(database)
        assert earlier.take()
        for _ in range(2):
            await coordination.clock.asleep(RECONCILIATION_INTERVAL)
            coordination.clock.advance(RECONCILIATION_INTERVAL)
            await coordination.clock.asleep(RECONCILIATION_INTERVAL)
            earlier.end()
        assert is_taken(database)


def test_a_server_does_not_begin_beside_one_that_shares_nothing(database: str, impatient: None) -> None:
    earlier = Earlier(database)
    assert earlier.take()
    with pytest.raises(RuntimeError, match="of a version that shares it with none"):
        begin(database, "")
    earlier.end()
    begin(database, "").release()


def test_servers_share_a_database_if_their_files_are_in_one_place(database: str, impatient: None) -> None:
    first, second = begin(database, "here"), begin(database, "here")
    assert is_taken(database)
    with pytest.raises(RuntimeError, match="has its files elsewhere"):
        begin(database, "there")
    first.release()
    with pytest.raises(RuntimeError, match="has its files elsewhere"):
        begin(database, "there")
    second.release()
    # A server alone may have moved its files.
    third = begin(database, "there")
    with pytest.raises(RuntimeError, match="has its files elsewhere"):
        begin(database, "here")
    third.release()


def test_a_server_whose_database_others_have_taken_for_other_files_stops(database: str, impatient: None) -> None:
    first = begin(database, "here")
    lose(database)
    other = begin(database, "there")
    with pytest.raises(RuntimeError, match="has its files elsewhere"):
        first.hold()
    other.release()
    begin(database, "here").release()


def add_lease(database: str, journal_id: str) -> None:
    """Adds a replica that has a lease, and not the lock."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO replica (replica_id, journal_id, name, version, schema_version, start_time, expire_time,"
            f" presence_version) VALUES ('one', %s, 'one', '1', 1000, 0, {NOW} + 60000000, 0)",
            (journal_id,),
        )


def test_a_server_leaves_room_for_replicas_that_have_lost_the_lock(database: str, impatient: None) -> None:
    first = begin(database, "here")
    add_lease(database, "its own")
    lose(database)
    second = ServerLock(database, lambda: "here")
    with second.starting():
        first.hold()
    first.release()
    second.release()


def test_replicas_that_have_lost_the_lock_keep_the_database_for_their_files(
    database: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lock, "WAIT_SECONDS", 0.3)
    first = begin(database, "here")
    add_lease(database, "its own")
    lose(database)
    with pytest.raises(RuntimeError, match="has its files elsewhere"):
        begin(database, "there")
    first.hold()
    first.release()
    # Another server with its journal: it has ended.
    lock = ServerLock(database, lambda: "there", "its own")
    with lock.starting():
        pass
    lock.release()


def test_a_server_that_starts_for_long_is_not_taken_for_one_that_shares_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lock, "START_TIMEOUT", "1ms")
    first = ServerLock(database)
    with first.starting(), pytest.raises(RuntimeError, match="starts for long, or migrates"):
        begin(database, "")
    first.release()
