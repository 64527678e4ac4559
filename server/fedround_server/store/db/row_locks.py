"""Row locks, which are held until the end of the transaction."""

from typing import TypeVar

from peewee import ModelSelect

from fedround_server.store.tables.base import Row, database_proxy

RowT = TypeVar("RowT", bound=Row)


def locked(rows: "ModelSelect[RowT]", strength: str = "FOR UPDATE") -> "ModelSelect[RowT]":
    """Returns a query that locks the rows it finds; SQLite has a single writer and needs no locks.

    To prevent deadlocks, every verb locks users before trainings, and trainings before models.

    Args:
        rows: The query.
        strength: The strength of the lock, as PostgreSQL names it.
    """
    return rows.for_update(strength) if database_proxy.for_update else rows  # type: ignore[arg-type]  # stubs lack it
