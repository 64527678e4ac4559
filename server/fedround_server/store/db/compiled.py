"""Statements whose SQL is written once: to have it written anew takes longer than to run it.

Each kind of database gets its own text, as another one may be opened later in the same process.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from peewee import OP, CharField, ColumnBase, Context, Expression, Field, IntegerField, PostgresqlDatabase, Query

from fedround_server.store.tables.base import Row, database_proxy

if TYPE_CHECKING:
    from peewee import ModelSelect

P = ParamSpec("P")
RowT = TypeVar("RowT", bound=Row)
Converter = Callable[[Any], Any]
UNCHANGED = (CharField.adapt, IntegerField.adapt)
"""How peewee makes sure that values are what the fields are declared with; here mypy does."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a value is put later, by its position among the arguments."""

    position: int
    converter: Converter | None


class _Parameter(ColumnBase):
    """Stands for a value in a query; by default what it is compared with tells how it is converted."""

    def __init__(self, position: int, converter: Converter | None = None) -> None:
        self.position = position
        self._converter_of_its_own = converter

    def __sql__(self, ctx: Context) -> Context:
        converter = self._converter_of_its_own or ctx.state.converter
        field = getattr(converter, "__self__", None)
        if isinstance(field, Field) and not _converts(field, "db_value"):
            converter = None
        ctx.value(_Slot(self.position, converter), converter=False)
        return ctx


class _Many(ColumnBase):
    """Many values as one parameter."""

    def __init__(self, values: "Collection[str | int] | _Parameter", kind: str) -> None:
        self._values = values
        self._kind = kind

    def __sql__(self, ctx: Context) -> Context:
        convert: Converter
        if isinstance(database_proxy.obj, PostgresqlDatabase):
            before, convert, after = "(SELECT unnest(", list, f"::{self._kind}[]))"
        else:
            before, convert, after = "(SELECT value FROM json_each(", _as_json, "))"
        values = self._values
        ctx.literal(before)
        ctx.value(_Slot(values.position, convert) if isinstance(values, _Parameter) else convert(values), False)
        ctx.literal(after)
        return ctx


def _as_json(values: Iterable[str | int]) -> str:
    return json.dumps(list(values))


def in_array(field: Field, values: Collection[str] | Collection[int]) -> Expression:
    """Says that a field has one of some values: `in_` says it too, with a parameter each, at many times the cost."""
    return Expression(field, OP.IN, _Many(values, "bigint" if isinstance(field, IntegerField) else "text"))


@dataclass(frozen=True, slots=True)
class _Statement:
    sql: str
    values: Sequence[Any]

    def execute(self, args: Sequence[Any]) -> Any:
        """Runs the statement with its parameters' values; returns the cursor."""
        return database_proxy.execute_sql(self.sql, [_bound(value, args) for value in self.values])


def _bound(value: Any, args: Sequence[Any]) -> Any:
    if not isinstance(value, _Slot):
        return value
    given = args[value.position]
    return given if value.converter is None else value.converter(given)


def _converts(field: Field, method: str) -> bool:
    """Tells whether a method of a field changes what it is given: text and whole numbers are stored as they are."""
    table = type(field)
    return getattr(table, method) is not getattr(Field, method) or table.adapt not in UNCHANGED


def _write(query: Query) -> _Statement:
    sql, values = query.sql()
    return _Statement(sql, tuple(values))


@dataclass(frozen=True, slots=True)
class CompiledValues(Generic[P]):
    """A query for values of columns."""

    build: Callable[P, Query]
    _written: dict[str, _Statement] = field(default_factory=dict)

    def all(self, *args: P.args, **kwargs: P.kwargs) -> list[tuple[Any, ...]]:
        """Returns what it finds, as the database has it: text, numbers and None are what they are."""
        kind = _kind()
        if kind not in self._written:
            self._written[kind] = _write(_built(self.build))
        found: list[tuple[Any, ...]] = self._written[kind].execute(_positional(args, kwargs)).fetchall()
        return found


def compiled_values(build: Callable[P, Query]) -> CompiledValues[P]:
    """Turns a function that builds a query into a prepared query for values, like `prepared`."""
    return CompiledValues(build)


@dataclass(frozen=True, slots=True)
class CompiledQuery(Generic[P, RowT]):
    """A query for rows of one table."""

    build: Callable[P, "ModelSelect[RowT]"]
    _written: dict[str, tuple[_Statement, "_Reader[RowT]"]] = field(default_factory=dict)

    def all(self, *args: P.args, **kwargs: P.kwargs) -> list[RowT]:
        """Returns the rows that it finds."""
        kind = _kind()
        if kind not in self._written:
            query = _built(self.build)
            self._written[kind] = _write(query), _Reader(query.model, query.selected_columns)
        statement, reader = self._written[kind]
        return [reader.read(found) for found in statement.execute(_positional(args, kwargs)).fetchall()]

    def first(self, *args: P.args, **kwargs: P.kwargs) -> RowT | None:
        """Returns the first row that it finds; a query that may find many should have a limit of 1."""
        rows = self.all(*args, **kwargs)
        return rows[0] if rows else None

    def one(self, *args: P.args, **kwargs: P.kwargs) -> RowT:
        """Returns the row that must be there.

        Raises:
            LookupError: It is not.
        """
        row = self.first(*args, **kwargs)
        if row is None:
            raise LookupError(f"{self.build.__name__}{args} finds no row")
        return row


def compiled(build: "Callable[P, ModelSelect[RowT]]") -> CompiledQuery[P, RowT]:
    """Turns a function that builds a query for fields of one table into a prepared query.

    The function is called once, with what stands for the values that callers give: so it may not look at them. They
    are compared with fields, not with None (nothing equals that), go to `in_array`, or are limits.
    """
    return CompiledQuery(build)


def _built(build: Callable[..., Any]) -> Any:
    return build(*map(_Parameter, range(len(signature(build).parameters))))


def _positional(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    if kwargs:
        raise TypeError("a prepared query takes its parameters by position")
    return args


class _Reader(Generic[RowT]):
    """Makes rows of what a query finds, as peewee does."""

    def __init__(self, table: type[RowT], columns: Sequence[Any]) -> None:
        if not all(isinstance(column, Field) and column.model is table for column in columns):
            raise TypeError(f"a prepared query selects fields of {table.__name__} alone")
        self._table = table
        self._names = [column.name for column in columns]
        self._decoders = [(column.name, column.python_value) for column in columns if _converts(column, "python_value")]

    def read(self, found: Sequence[Any]) -> RowT:
        values = dict(zip(self._names, found, strict=True))
        for name, decode in self._decoders:
            values[name] = decode(values[name])
        # What peewee's constructor makes, which calls a setter for each field.
        row = self._table.__new__(self._table)
        row.__data__, row.__rel__, row._dirty = values, {}, set()
        return row


def insert(*rows: Row) -> None:
    """Inserts rows with all their columns."""
    for row in rows:
        _insertion(_kind(), type(row)).execute(_values(row, row._meta.sorted_field_names))
        row._dirty.clear()


def save(row: Row) -> None:
    """Writes what was set of a row since it was read or inserted, but not its key."""
    keys = _keys(type(row))
    changed = [name for name in row.dirty_field_names if name not in keys]
    if changed:
        _update(_kind(), type(row), *changed).execute(_values(row, [*changed, *keys]))
        row._dirty.clear()


def _kind() -> str:
    return type(database_proxy.obj).__name__


@cache
def _keys(table: type[Row]) -> Sequence[str]:
    return [key.name for key in table._meta.get_primary_keys()]  # type: ignore[no-untyped-call]  # the stubs' lack


def _values(row: Row, names: Sequence[str]) -> list[Any]:
    return [row.__data__.get(name) for name in names]


@cache
def _insertion(kind: str, table: type[Row]) -> _Statement:
    return _write(table.insert(_parameters(table, table._meta.sorted_field_names)))


@cache
def _update(kind: str, table: type[Row], *names: str) -> _Statement:
    query = table.update(_parameters(table, names))
    for position, key in enumerate(_keys(table), len(names)):
        query = query.where(table._meta.fields[key] == _Parameter(position))
    return _write(query)


def _parameters(table: type[Row], names: Sequence[str]) -> Mapping[Field, _Parameter]:
    fields = [table._meta.fields[name] for name in names]
    return {one: _Parameter(position, one.db_value) for position, one in enumerate(fields)}
