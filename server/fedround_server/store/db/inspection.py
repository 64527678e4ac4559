"""What can be found out about a database that is open for reading, besides its content."""

import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import peewee

from fedround_server.store.db.migrate import Schema, read_schema
from fedround_server.store.tables.base import database_proxy

STEPS = 100_000
"""After how many instructions SQLite looks whether its time is over."""
UNSAFE = "accepted updates can be lost in a power failure: set it to on"
DURABILITY = {
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "synchronous_commit": ("on", "remote_apply", "remote_write"),
}
"""Settings of PostgreSQL that a receipt depends on, with their safe values."""


def version() -> str:
    """Returns the name and the version of the database."""
    if isinstance(database_proxy.obj, peewee.SqliteDatabase):
        return f"SQLite {_value('SELECT sqlite_version()')}"
    return f"PostgreSQL {_value('SHOW server_version')}"


def schema() -> Schema:
    """Returns the schema of the database."""
    return read_schema(database_proxy.obj)


def check_schema() -> None:
    """Checks that the database has the tables of this version, neither older nor newer ones.

    Raises:
        RuntimeError: It does not.
    """
    found = schema()
    for age, names in (("a newer", found.unknown), ("an older", [one.name for one in found.missing])):
        if names:
            raise RuntimeError(
                f"the database is of {age} version of fedround (see {names[0]}): use the version of the server"
            )


def durability() -> Iterator[tuple[str, str, str]]:
    """Yields settings of PostgreSQL: name, value, and what is wrong with it, if anything; none of SQLite."""
    if isinstance(database_proxy.obj, peewee.SqliteDatabase):
        return
    for name, safe in DURABILITY.items():
        value = str(_value(f"SHOW {name}"))
        yield name, value, "" if value in safe else UNSAFE
    yield "timezone", str(_value("SHOW timezone")), ""


def quick_check(seconds: float) -> str | None:
    """Looks for damage of a SQLite file for so many seconds at most; PostgreSQL finds its own.

    Returns:
        The first damage; empty for none, None if the time was not enough.
    """
    database = database_proxy.obj
    if not isinstance(database, peewee.SqliteDatabase):
        return ""
    end = time.monotonic() + seconds
    connection: sqlite3.Connection = database.connection()  # type: ignore[no-untyped-call]  # the stubs lack it
    connection.set_progress_handler(lambda: time.monotonic() > end, STEPS)
    try:
        found = str(_value("PRAGMA quick_check(1)"))
    except peewee.OperationalError as error:
        if time.monotonic() > end:
            return None
        return str(error)
    except peewee.DatabaseError as error:
        return str(error)
    finally:
        connection.set_progress_handler(None, 0)
    return "" if found == "ok" else found


def _value(sql: str) -> Any:
    ((value,),) = database_proxy.obj.execute_sql(sql).fetchall()
    return value
