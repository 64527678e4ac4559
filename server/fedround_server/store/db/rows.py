"""Inserts and saves rows with compiled statements, and locks rows until the end of the transaction."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any, TypeVar

from peewee import Field, ModelSelect

from fedround_server.store.db.compiled import Parameter, Statement, compile_query, database_kind, row_of
from fedround_server.store.tables.base import Row, database_proxy

RowT = TypeVar("RowT", bound=Row)
MAX_ROWS = 64
"""Rows of one statement, of which there is one for each number of rows."""


def new_row(table: type[RowT], **values: Any) -> RowT:
    """Makes a row that is to be inserted; a field without a value is null, whatever its default."""
    return row_of(table, values)


def insert(*rows: Row) -> None:
    """Inserts rows with all their columns; those of one table that follow each other share statements."""
    for table, some in groupby(rows, lambda row: row.__class__):
        same, names = list(some), table._meta.sorted_field_names
        for start in range(0, len(same), MAX_ROWS):
            batch = same[start : start + MAX_ROWS]
            one, sql = _insertion(database_kind(), table, len(batch))
            database_proxy.execute_sql(sql, [value for row in batch for value in one.bind(_values(row, names))])
            for row in batch:
                row._dirty.clear()


def save(row: Row) -> None:
    """Writes the fields that were set since a row was read or inserted, except its key."""
    keys = _keys(type(row))
    changed = [name for name in row.dirty_field_names if name not in keys]
    if changed:
        _update(database_kind(), type(row), *changed).execute(_values(row, [*changed, *keys]))
        row._dirty.clear()


def locked(rows: "ModelSelect[RowT]", strength: str = "FOR UPDATE") -> "ModelSelect[RowT]":
    """Returns a query that locks the rows it finds; SQLite has a single writer and needs no locks.

    To prevent deadlocks, every verb locks users before trainings, and trainings before models.
    """
    return rows.for_update(strength) if database_proxy.for_update else rows  # type: ignore[arg-type]  # stubs lack it


@cache
def _keys(table: type[Row]) -> Sequence[str]:
    return [key.name for key in table._meta.get_primary_keys()]  # type: ignore[no-untyped-call]  # the stubs' lack


def _values(row: Row, names: Sequence[str]) -> list[Any]:
    return [row.__data__.get(name) for name in names]


@cache
def _insertion(kind: str, table: type[Row], num_rows: int) -> tuple[Statement, str]:
    """Returns the statement that inserts one row, and the SQL of the one that inserts some."""
    one = compile_query(table.insert(_parameters(table, table._meta.sorted_field_names)))
    # Peewee would take 30 us to write the values of each row.
    return one, re.sub(r"(?<= VALUES )\(.*?\)", lambda values: ", ".join([values[0]] * num_rows), one.sql, count=1)


@cache
def _update(kind: str, table: type[Row], *names: str) -> Statement:
    query = table.update(_parameters(table, names))
    for position, key in enumerate(_keys(table), len(names)):
        query = query.where(table._meta.fields[key] == Parameter(position))
    return compile_query(query)


def _parameters(table: type[Row], names: Sequence[str]) -> Mapping[Field, Parameter]:
    fields = [table._meta.fields[name] for name in names]
    return {one: Parameter(position, one.db_value) for position, one in enumerate(fields)}
