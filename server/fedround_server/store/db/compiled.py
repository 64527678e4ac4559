"""Compiled queries: peewee writes their SQL once, since that takes longer than to run it.

The SQL is kept for each kind of database: a process may open one after the other.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
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
"""The conversions of peewee that return text and integers as they are, after a check that mypy makes here."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An argument among the values of a statement: its position, and its conversion for the database, if it has one."""

    position: int
    convert: Converter | None


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with its values, some of which are slots for arguments."""

    sql: str
    values: Sequence[Any]

    def execute(self, args: Sequence[Any]) -> Any:
        """Runs the statement with arguments; returns the cursor."""
        return database_proxy.execute_sql(self.sql, self.bind(args))

    def bind(self, args: Sequence[Any]) -> list[Any]:
        """Returns the values with arguments in place of the slots."""
        return [_bind(value, args) for value in self.values]


class Parameter(ColumnBase):
    """Stands for an argument in a query; by default it is converted by the field that it is compared with."""

    def __init__(self, position: int, convert: Converter | None = None) -> None:
        self.position = position
        self._convert = convert

    def __sql__(self, ctx: Context) -> Context:
        convert = self._convert or ctx.state.converter
        field = getattr(convert, "__self__", None)
        if isinstance(field, Field) and not converts(field, "db_value"):
            convert = None
        ctx.value(Slot(self.position, convert), converter=False)
        return ctx


class _Array(ColumnBase):
    """Many values as one parameter."""

    def __init__(self, values: Collection[str | int] | Parameter, kind: str) -> None:
        self._values = values
        self._kind = kind

    def __sql__(self, ctx: Context) -> Context:
        convert: Converter
        if isinstance(database_proxy.obj, PostgresqlDatabase):
            before, convert, after = "(SELECT unnest(", list, f"::{self._kind}[]))"
        else:
            before, convert, after = "(SELECT value FROM json_each(", lambda values: json.dumps(list(values)), "))"
        values = self._values
        ctx.literal(before)
        ctx.value(Slot(values.position, convert) if isinstance(values, Parameter) else convert(values), False)
        ctx.literal(after)
        return ctx


def in_array(field: Field, values: Collection[str] | Collection[int]) -> Expression:
    """Returns the condition that a field has one of some values.

    The values are one parameter of the statement. `field.in_(values)` has one parameter for each, at many times the
    cost, and its SQL depends on their number.
    """
    return Expression(field, OP.IN, _Array(values, "bigint" if isinstance(field, IntegerField) else "text"))


@dataclass(frozen=True, slots=True)
class CompiledValues(Generic[P]):
    """A compiled query for the values of columns."""

    build: Callable[P, Query]
    _statements: dict[str, Statement] = field(default_factory=dict)

    def all(self, *args: P.args, **kwargs: P.kwargs) -> list[tuple[Any, ...]]:
        """Returns what the query finds, as the database stores it."""
        if kwargs:
            raise TypeError("a compiled query takes its arguments by position")
        kind = database_kind()
        if kind not in self._statements:
            self._statements[kind] = compile_query(self.query())
        found: list[tuple[Any, ...]] = self._statements[kind].execute(args).fetchall()
        return found

    def query(self) -> Query:
        """Builds the query with a parameter for each argument."""
        build: Callable[..., Query] = self.build
        return build(*map(Parameter, range(len(signature(build).parameters))))


def compiled_values(build: Callable[P, Query]) -> CompiledValues[P]:
    """Turns a function that builds a query into a compiled query for values; see `compiled`."""
    return CompiledValues(build)


class CompiledQuery(Generic[P, RowT]):
    """A compiled query for rows of one table."""

    def __init__(self, build: "Callable[P, ModelSelect[RowT]]") -> None:
        """Compiles nothing yet."""
        self.build = build
        self._values = CompiledValues(build)
        self._reader: _RowReader[RowT] | None = None

    def all(self, *args: P.args, **kwargs: P.kwargs) -> list[RowT]:
        """Returns the rows that the query finds."""
        if self._reader is None:
            query: Any = self._values.query()
            self._reader = _RowReader(query.model, query.selected_columns)
        return [self._reader.read(found) for found in self._values.all(*args, **kwargs)]

    def first(self, *args: P.args, **kwargs: P.kwargs) -> RowT | None:
        """Returns the first row that the query finds, or None; a query that may find many should have a limit of 1."""
        rows = self.all(*args, **kwargs)
        return rows[0] if rows else None

    def one(self, *args: P.args, **kwargs: P.kwargs) -> RowT:
        """Returns the row that the query finds.

        Raises:
            LookupError: The query finds no row.
        """
        row = self.first(*args, **kwargs)
        if row is None:
            raise LookupError(f"{self.build.__name__}{args} finds no row")
        return row


def compiled(build: "Callable[P, ModelSelect[RowT]]") -> CompiledQuery[P, RowT]:
    """Turns a function that builds a query for fields of one table into a compiled query.

    The function is called once for each kind of database, with parameters instead of values; so it cannot depend on
    values. A parameter is compared with a field, given to `in_array`, or is a limit. None equals nothing.
    """
    return CompiledQuery(build)


class _RowReader(Generic[RowT]):
    """Makes rows of a table from the values that a query finds."""

    def __init__(self, table: type[RowT], columns: Sequence[Any]) -> None:
        if not all(isinstance(column, Field) and column.model is table for column in columns):
            raise TypeError(f"a compiled query selects fields of {table.__name__} alone")
        self._table = table
        self._names = [column.name for column in columns]
        self._decoders = [(column.name, column.python_value) for column in columns if converts(column, "python_value")]

    def read(self, found: Sequence[Any]) -> RowT:
        values = dict(zip(self._names, found, strict=True))
        for name, decode in self._decoders:
            values[name] = decode(values[name])
        return row_of(self._table, values)


def row_of(table: type[RowT], values: dict[str, Any]) -> RowT:
    """Makes a row of the values of its fields: what peewee's constructor does, which calls a setter for each."""
    row = table.__new__(table)
    row.__data__, row.__rel__, row._dirty = values, {}, set()
    return row


def database_kind() -> str:
    """Returns the kind of the open database."""
    return type(database_proxy.obj).__name__


def compile_query(query: Query) -> Statement:
    """Returns the SQL of a query."""
    sql, values = query.sql()
    return Statement(sql, tuple(values))


def converts(field: Field, method: str) -> bool:
    """Returns whether `db_value` or `python_value` of a field changes values; text and integers stay the same."""
    kind = type(field)
    return getattr(kind, method) is not getattr(Field, method) or kind.adapt not in UNCHANGED


def _bind(value: Any, args: Sequence[Any]) -> Any:
    if not isinstance(value, Slot):
        return value
    given = args[value.position]
    return given if value.convert is None else value.convert(given)
