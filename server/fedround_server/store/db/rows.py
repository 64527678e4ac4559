"""Inserts and saves rows with compiled statements, and locks rows until the end of the transaction."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from peewee import Field, ModelSelect

from fedround_server.store.db.compiled import Parameter, Statement, compile_query, database_kind
from fedround_server.store.tables.base import Row, database_proxy

RowT = TypeVar("RowT", bound=Row)


def insert(*rows: Row) -> None:
    """Inserts rows with all their columns."""
    for row in rows:
        _insertion(database_kind(), type(row)).execute(_values(row, row._meta.sorted_field_names))
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
def _insertion(kind: str, table: type[Row]) -> Statement:
    return compile_query(table.insert(_parameters(table, table._meta.sorted_field_names)))


@cache
def _update(kind: str, table: type[Row], *names: str) -> Statement:
    query = table.update(_parameters(table, names))
    for position, key in enumerate(_keys(table), len(names)):
        query = query.where(table._meta.fields[key] == Parameter(position))
    return compile_query(query)


def _parameters(table: type[Row], names: Sequence[str]) -> Mapping[Field, Parameter]:
    fields = [table._meta.fields[name] for name in names]
    return {one: Parameter(position, one.db_value) for position, one in enumerate(fields)}
