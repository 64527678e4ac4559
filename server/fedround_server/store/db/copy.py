"""Copies all rows of a SQLite database into an empty PostgreSQL database."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from peewee import BooleanField
from playhouse.migrations import Runner

from fedround_server.store.db.connection import (
    connect,
    database_name,
    disconnect,
    in_one_line,
    is_empty,
    reading,
    unavailable,
)
from fedround_server.store.db.inspection import check_schema
from fedround_server.store.db.migrate import MIGRATIONS
from fedround_server.store.db.server_lock import ServerLock
from fedround_server.store.db.wal import check_log
from fedround_server.store.tables.base import Row

FETCH_ROWS = 1000
DIGEST_BITS = 256


class CopyError(RuntimeError):
    """A database cannot be copied; the message says why."""


def copy_to_postgres(
    source: Path,
    target: str,
    tables: Sequence[type[Row]],
    progress: Callable[[str, int], None],
    before_commit: Callable[[], None],
) -> dict[str, int]:
    """Copies a database, and compares the copy with it, in one transaction.

    Args:
        source: The SQLite file of a server that is stopped.
        target: The URL of an empty database.
        tables: All tables.
        progress: Called with the name of each table, and how many rows were copied.
        before_commit: Called when all is copied: makes sure that no server goes on with the source. If the copy fails
            afterwards, it is not known whether it was made.

    Returns:
        The number of rows by table.

    Raises:
        CopyError: The target is not empty, or the copy differs.
        RuntimeError: A server uses the target, or the source is of another version or damaged.
        StoreUnavailable: A database does not answer.
    """
    check_log(source)
    with reading(source):
        check_schema()
    _check_empty(target)
    lock = ServerLock(target)
    try:
        with lock.starting():
            # Another copy may have been made while this one waited for the lock.
            _check_empty(target)
            uri = f"{source.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as rows_of:
                # One state of all tables.
                rows_of.execute("BEGIN")
                return _copy(rows_of, target, tables, progress, before_commit)
    finally:
        lock.release()


def _check_empty(target: str) -> None:
    if not is_empty(target):
        raise CopyError(f"the database {database_name(target)} is not empty: create another one")


def _copy(
    source: sqlite3.Connection,
    target: str,
    tables: Sequence[type[Row]],
    progress: Callable[[str, int], None],
    before_commit: Callable[[], None],
) -> dict[str, int]:
    # The driver is an extra.
    import psycopg

    database = connect(target)
    counts = {}
    with unavailable():
        try:
            with database.connection_context(), database.atomic():
                Runner(database, str(MIGRATIONS)).up()
                session = database.connection()
                for table in tables:
                    name = table._meta.table_name
                    counts[name] = _copy_table(source, session, table)
                    progress(name, counts[name])
                before_commit()
        except (psycopg.Error, sqlite3.Error) as error:
            raise CopyError(f"the database cannot be copied, so nothing was: {in_one_line(error)}") from error
        finally:
            disconnect(database)
    return counts


def _copy_table(source: sqlite3.Connection, session: Any, table: type[Row]) -> int:
    """Copies a table, and compares the copy; returns the number of rows."""
    name = table._meta.table_name
    columns = ", ".join(f'"{field.column_name}"' for field in table._meta.sorted_fields)
    select = f'SELECT {columns} FROM "{name}"'  # noqa: S608 -- names of this package
    before, after = _Digest(), _Digest()
    with session.cursor() as cursor:
        # A migration may have made rows.
        cursor.execute(f'DELETE FROM "{name}"')  # noqa: S608
        with cursor.copy(f'COPY "{name}" ({columns}) FROM STDIN') as copy:
            for row in before.of(_converted(source.execute(select), table)):
                copy.write_row(row)
    with session.cursor(f"copy_{name}") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(select)
        for _ in after.of(cursor):
            pass
    if before != after:
        raise CopyError(f"the copy of the table {name} differs, so nothing was copied")
    return before.num_rows


def _converted(rows: Iterable[tuple[Any, ...]], table: type[Row]) -> Iterator[tuple[Any, ...]]:
    """Yields rows of SQLite as PostgreSQL has them: its booleans are numbers."""
    booleans = [number for number, field in enumerate(table._meta.sorted_fields) if isinstance(field, BooleanField)]
    for row in rows:
        values = list(row)
        for number in booleans:
            if values[number] is not None:
                values[number] = bool(values[number])
        yield tuple(values)


class _Digest:
    """The number of rows, and a sum of their SHA-256: the databases need not return them in the same order."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._sum = 0

    def of(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Adds rows, and yields them."""
        for row in rows:
            self.num_rows += 1
            self._sum = (self._sum + int.from_bytes(hashlib.sha256(repr(row).encode()).digest())) % 2**DIGEST_BITS
            yield row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and (self.num_rows, self._sum) == (other.num_rows, other._sum)

    __hash__ = None  # type: ignore[assignment]
