"""Connections to SQLite and PostgreSQL, and what their errors mean to callers."""

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import peewee
from playhouse.pool import PooledPostgresqlDatabase

from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.outage import log, outage
from fedround_server.store.db.wal import check_log
from fedround_server.store.tables.base import database_proxy

POSTGRES_THREADS = 4
CONNECT_SECONDS = 10
"""How long PostgreSQL may take to accept a connection, unless its URL says otherwise (`connect_timeout`)."""
NETWORK: dict[str, Any] = {"keepalives_idle": 5, "tcp_user_timeout": 10_000}
"""Settings of a server's connections, unless its URL has others: by default a lost network is noticed after hours."""
Connections: TypeAlias = peewee.SqliteDatabase | PooledPostgresqlDatabase
"""A connection to SQLite for each thread, or a pool of connections to PostgreSQL."""


SESSION_KEY = 0x666564726F756E65
"""The key of the advisory lock that all sessions of a server without a journal hold."""
KEEPALIVES = ("SET tcp_keepalives_idle = 10", "SET tcp_keepalives_interval = 5", "SET tcp_keepalives_count = 3")
"""Without them, the locks of a machine that has lost its network would be held for hours."""
IDLE = "SET idle_in_transaction_session_timeout = '10s'"
"""Without it, the locks of a server that is paused in the middle of a transaction would be held until it goes on."""


def session_key(journal_id: str) -> int:
    """Returns the key of the advisory lock that all sessions hold of a server with a journal: 63 bits."""
    digest = hashlib.sha256(journal_id.encode()).digest()
    return int.from_bytes(digest[:8]) >> 1 if journal_id else SESSION_KEY


class _LockedSessions(peewee.PostgresqlDatabase):
    session_key = SESSION_KEY

    def _connect(self) -> Any:
        session = super()._connect()  # type: ignore[misc]  # not in the stubs of peewee
        with session.cursor() as cursor:
            for setting in (*KEEPALIVES, IDLE):
                cursor.execute(setting)
            cursor.execute("SELECT pg_advisory_lock_shared(%s)", (self.session_key,))
        return session


class ServerConnections(PooledPostgresqlDatabase, _LockedSessions):  # type: ignore[misc]  # playhouse.pool has none
    """The connections of a server. Each session holds a lock, which they share, until its last transaction has ended.

    The database may commit a transaction some time after the server that asked for it was killed.
    """


def is_postgres(url: str | Path) -> bool:
    """Returns whether a URL names a PostgreSQL database; all others are paths of SQLite files."""
    return isinstance(url, str) and url.startswith(("postgresql://", "postgres://"))


def database_name(url: str | Path) -> str:
    """Returns how an operator knows a database: by its path, or its host, port and name, without the password."""
    if not is_postgres(url):
        return str(url)
    settings = postgres_settings(str(url))
    return f"{settings.get('host', 'localhost')}:{settings.get('port', 5432)}/{settings['dbname']}"


def size_bytes(database: Connections) -> int:
    """Returns the size of a database that is open, SQLite's with its log."""
    if isinstance(database, peewee.SqliteDatabase):
        files = (Path(database.database), Path(f"{database.database}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
    ((size,),) = database.execute_sql("SELECT pg_database_size(current_database())").fetchall()
    return int(size)


def connect(url: str | Path, *, no_sync: bool = False, journal_id: str = "") -> Connections:
    """Returns the connections to a database, none of which is open yet; a missing SQLite file is created.

    Args:
        url: The database.
        no_sync: Whether SQLite forces nothing to disk; PostgreSQL has a setting of its own.
        journal_id: The id of the journal of the server that PostgreSQL's sessions are of.

    Raises:
        RuntimeError: PostgreSQL's driver is not installed, its URL is not valid, or SQLite's log has lost changes.
        OSError: SQLite's file cannot be created.
    """
    if not is_postgres(url):
        return _sqlite(Path(url), no_sync=no_sync)
    database: Any = _postgres(str(url), ServerConnections)
    database.session_key = session_key(journal_id)
    return database


def postgres_settings(url: str) -> dict[str, Any]:
    """Returns the settings of a connection to PostgreSQL, which is given up after a while.

    Raises:
        RuntimeError: The driver is not installed, or the URL is not valid.
    """
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise RuntimeError("PostgreSQL wants its driver: pip install 'fedround[postgres]'") from error
    try:
        return {"dbname": "fedround", "connect_timeout": CONNECT_SECONDS, **conninfo_to_dict(url)}
    except ProgrammingError:
        # Its message may have the password.
        raise RuntimeError(
            "database: is no valid URL: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %XX for characters"
            " that have a meaning in URLs"
        ) from None


def _sqlite(path: Path, *, no_sync: bool) -> peewee.SqliteDatabase:
    # In WAL mode, synchronous=NORMAL does not sync at a commit; FULL does, and a receipt is a promise.
    # Savepoints copy the pages that they change, by default into a file in /var/tmp once these have 64 KiB.
    pragmas = {
        "journal_mode": "wal",
        "synchronous": "off" if no_sync else "full",
        "busy_timeout": 10_000,
        "temp_store": "memory",
    }
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    check_log(path)
    return peewee.SqliteDatabase(str(path), pragmas=pragmas, thread_safe=True)


def _postgres(url: str, kind: type[PooledPostgresqlDatabase] = PooledPostgresqlDatabase) -> PooledPostgresqlDatabase:
    settings = NETWORK | postgres_settings(url)
    return kind(
        settings.pop("dbname"),
        max_connections=POSTGRES_THREADS + 1,
        prefer_psycopg3=True,
        **settings,
    )


@contextmanager
def reading(url: str | Path) -> Iterator[None]:
    """Binds the tables to a database within the block, read-only; a running server may have the database open.

    Raises:
        StoreUnavailable: There is no such database, or it does not answer.
    """
    database: Connections
    if is_postgres(url):
        database = _postgres(str(url))
    else:
        database = peewee.SqliteDatabase(f"{Path(url).absolute().as_uri()}?mode=ro", uri=True)
    database_proxy.initialize(database)
    try:
        with database.connection_context():
            if is_postgres(url):
                database.execute_sql("SET default_transaction_read_only = on")
            yield
    except (peewee.DatabaseError, peewee.InterfaceError) as error:
        raise StoreUnavailable(f"the database cannot be read: {error}") from error
    finally:
        disconnect(database)
        database_proxy.initialize(None)


@contextmanager
def exporting_snapshot() -> Iterator[str]:
    """Reads one state of the PostgreSQL database within the block; yields the id by which others can read it, too."""
    with reading_one_state():
        yield str(database_proxy.obj.execute_sql("SELECT pg_export_snapshot()").fetchone()[0])


@contextmanager
def reading_one_state() -> Iterator[None]:
    """Lets the statements of the block see the same state of the database, which `reading` has opened."""
    with database_proxy.obj.atomic():
        if isinstance(database_proxy.obj, PooledPostgresqlDatabase):
            database_proxy.obj.execute_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def is_empty(url: str) -> bool:
    """Returns whether a PostgreSQL database has no tables.

    Raises:
        StoreUnavailable: It does not answer.
    """
    with reading(url):
        return not database_proxy.obj.get_tables()


def disconnect(database: Connections) -> None:
    """Closes the connections of all threads, of SQLite the one of this thread."""
    if isinstance(database, PooledPostgresqlDatabase):
        database.close_all()
    else:
        database.close()


@contextmanager
def unavailable() -> Iterator[None]:
    """Translates the errors of a database that does not answer.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    try:
        yield
    except (peewee.OperationalError, peewee.InterfaceError) as error:
        first = first_error(error)
        if isinstance(first, sqlite3.Error):
            # Such as a full disk, with which reads are answered all the time.
            log.warning("the database does not answer: %s", in_one_line(first))
        else:
            outage.failed(in_one_line(first))
        raise StoreUnavailable("the database does not answer: try again") from error


def in_one_line(error: BaseException) -> str:
    """Returns the message of an error as one line of a log: those of PostgreSQL have several."""
    return " ".join(str(error).split())


def first_error(error: BaseException) -> BaseException:
    """Returns the first error of a chain: when SQLite has ended a transaction itself, the rollback fails too."""
    while error.__context__ is not None:
        error = error.__context__
    return error
