"""Output of the commands: tables for people, protobuf JSON for programs. Everything is printed by `echo`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from enum import StrEnum
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

import grpc
import typer
from google.protobuf.json_format import Error, MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from fedround_client.errors import ResponseInvalid
from fedround_client.flat import flatten
from fedround_client.payload import Progress as Report
from fedround_client.printable import printable


class Format(StrEnum):
    """Output formats."""

    TABLE = "table"
    JSON = "json"


class TableFormat(StrEnum):
    """Output formats of commands whose rows may be loaded into a spreadsheet."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


FormatOption: TypeAlias = Annotated[Format, typer.Option("--format", help="A table for people, or JSON for programs.")]
TableFormatOption: TypeAlias = Annotated[
    TableFormat, typer.Option("--format", help="A table for people, CSV for spreadsheets, or JSON for programs.")
]

UINT32 = 2**32 - 1
"""Largest value of counts and versions in the API."""

Item = TypeVar("Item", bound=Message)
Row = TypeVar("Row")
Columns: TypeAlias = Mapping[str, Callable[[Row], object]]


class EnumType(Protocol):
    """The wrapper of a protobuf enum."""

    def Name(self, number: Any) -> str:  # noqa: N802 -- protobuf's name
        """Returns the name of a value."""

    def values(self) -> Any:
        """Returns the values."""


def echo(text: str, *, err: bool = False) -> None:
    """Prints lines; control and format characters in them are escaped.

    All output of commands passes through here, since a server or another user may have chosen any word of it.
    """
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def echo_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints a value as JSON, in ASCII."""
    echo(json.dumps(value, indent=indent))


def as_dict(message: Message) -> dict[str, Any]:
    """Returns a message as protobuf JSON, with the field names of the .proto files, and with zeros.

    Raises:
        ResponseInvalid: It holds a value that protobuf JSON does not have, such as a time in the year 30000.
    """
    try:
        return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    except (Error, ValueError) as error:
        text = f"The server's answer holds a value that is not valid: {error}"
        raise ResponseInvalid(grpc.StatusCode.INTERNAL, "RESPONSE_INVALID", text) from error


def show(message: Message, form: Format) -> None:
    """Prints a message as JSON, or as a table with one row per field that has a value."""
    if form is Format.JSON:
        echo_json(as_dict(message))
    else:
        show_fields(flatten(as_dict(message)))


def show_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Prints names and values for people, one pair per line; leaves out what is empty."""
    table = Table.grid(padding=(0, 2))
    for name, value in fields:
        if value not in ("", None):
            table.add_row(printable(name), printable(value))
    _print(table)


def show_removed(noun: str, object_id: str, form: Format) -> None:
    """Confirms on stderr that an object is removed; with JSON, prints its id."""
    if form is Format.JSON:
        echo_json({f"removed_{noun}_id": object_id})
    else:
        echo(f"{noun.capitalize()} {object_id} is removed.", err=True)


def show_all(messages: Iterable[Item], columns: Columns[Item], form: Format) -> None:
    """Prints messages as a JSON array, or as a table with one row per message."""
    if form is Format.JSON:
        echo_json([as_dict(message) for message in messages])
    else:
        show_table(columns, (cells(message, columns) for message in messages))


def used(columns: Columns[Item], messages: Collection[Item]) -> Columns[Item]:
    """Returns those of some columns that are not empty."""
    return {name: value for name, value in columns.items() if any(value(message) for message in messages)}


def show_table(header: Iterable[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table for people."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in header:
        # A wrapped id cannot be copied.
        table.add_column(printable(name), overflow="fold", no_wrap=name.endswith("ID"))
    for row in rows:
        table.add_row(*(printable(f"{cell:.6g}" if isinstance(cell, float) else cell) for cell in row))
    _print(table)


def cells(row: Row, columns: Columns[Row]) -> list[object]:
    """Returns the cells of a row, of a message for one."""
    return [value(row) for value in columns.values()]


def when(moment: Timestamp) -> str:
    """Returns a time in ISO 8601 and local time; empty if unset."""
    if not moment.ByteSize():
        return ""
    try:
        return moment.ToDatetime(UTC).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError):
        return "no valid time"


def enum_name(enum: EnumType, value: int) -> str:
    """Returns the name of an enum value without its prefix: TRAINING_STATE_ONGOING becomes ONGOING.

    A value of a newer server, which has no name here, is returned as its number.
    """
    if value not in enum.values():
        return str(value)
    name = enum.Name(value)
    for prefix in ("TRAINING_STATE_", "ROUND_STATE_", "ROUND_KIND_", "ROLE_", "UPDATE_PRECISION_"):
        name = name.removeprefix(prefix)
    return name


@contextmanager
def progress(what: str) -> Iterator[Report | None]:
    """Shows the progress of a transfer on stderr during the block, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def stderr_console() -> Console:
    """Returns a console on stderr for live views; it takes texts as they are, without markup."""
    return Console(stderr=True, markup=False, highlight=False)


def stdout_console() -> Console:
    """Returns such a console on stdout."""
    return Console(markup=False, highlight=False)


def screen_console() -> Console | None:
    """Returns a console on stdout for a view that fills the screen; None if stdout is no terminal that can show it."""
    can_show = sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    return Console(markup=False, highlight=False) if can_show else None


@contextmanager
def live_line(text: str) -> Iterator[Callable[[str], None] | None]:
    """Shows a line on stderr during the block, if that is a terminal; yields what replaces the line by another one."""
    if not sys.stderr.isatty():
        yield None
        return
    with Console(stderr=True).status(Text(printable(text))) as status:
        yield lambda line: status.update(Text(printable(line)))


def _print(table: Table) -> None:
    # Does not wrap lines in pipes and files, so that ids stay whole.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)
    with console.capture() as captured:
        console.print(table)
    echo("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))
