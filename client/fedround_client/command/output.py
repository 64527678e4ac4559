"""Output of the commands: tables for people, protobuf JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from enum import StrEnum
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from fedround_client.payload import Progress as Report


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
Columns: TypeAlias = Mapping[str, Callable[[Item], object]]


def as_dict(message: Message) -> dict[str, Any]:
    """Returns a message as protobuf JSON, with the field names of the .proto files, and with zeros."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def show(message: Message, form: Format) -> None:
    """Prints a message as JSON, or as a table with one row per field that has a value."""
    if form is Format.JSON:
        typer.echo(json.dumps(as_dict(message), indent=2))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in _flat(as_dict(message)):
        table.add_row(_plain(name), _plain(value))
    _console().print(table)


def show_all(messages: Iterable[Item], columns: Columns[Item], form: Format) -> None:
    """Prints messages as a JSON array, or as a table with one row per message."""
    if form is Format.JSON:
        typer.echo(json.dumps([as_dict(message) for message in messages], indent=2))
        return
    show_table(columns, (_cells(message, columns) for message in messages))


def show_table(header: Iterable[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table for people."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in header:
        # A wrapped id cannot be copied.
        table.add_column(_plain(name), overflow="fold", no_wrap=name.endswith("ID"))
    for row in rows:
        table.add_row(*(_plain(f"{cell:.6g}" if isinstance(cell, float) else cell) for cell in row))
    _console().print(table)


def as_csv(messages: Iterable[Item], columns: Columns[Item]) -> str:
    """Returns messages as CSV with a header; floats have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_plain(name) for name in columns])
    writer.writerows([_plain(cell) for cell in _cells(message, columns)] for message in messages)
    return text.getvalue()


def when(moment: Timestamp) -> str:
    """Returns a time in ISO 8601 and local time; empty if unset."""
    if not moment.ByteSize():
        return ""
    return moment.ToDatetime(UTC).astimezone().isoformat(" ", "seconds")


def state_name(name: str) -> str:
    """Returns the name of an enum value without its prefix: TRAINING_STATE_ONGOING becomes ONGOING."""
    for prefix in ("TRAINING_STATE_", "ROUND_STATE_", "ROUND_KIND_", "ROLE_"):
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


def _cells(message: Item, columns: Columns[Item]) -> list[object]:
    return [value(message) for value in columns.values()]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if value == {}:  # a message without fields, like FedAvg
        yield name, "{}"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}.{index}")
    elif value not in ("", None):
        yield name, str(value)


def _plain(value: object) -> str:
    """Returns a value as text without control characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def _console() -> Console:
    # Does not wrap lines in pipes and files, so that ids stay whole.
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)
