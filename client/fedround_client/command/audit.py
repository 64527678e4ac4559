"""`fedround audit`: verify and export the audit log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from fedround_client.audit_chain import verify as verify_items
from fedround_client.audit_entry import SERVER, AuditBroken, AuditEntry, AuditHead
from fedround_client.command.failures import print_errors
from fedround_client.command.files import ForceOption, check_new
from fedround_client.command.output import Format, FormatOption, echo, echo_json
from fedround_client.command.serve import require
from fedround_client.command.session import client_of
from fedround_client.exit_codes import ExitCode

app = typer.Typer(no_args_is_help=True, help="Verify the audit log, print its head, or export it. For admins.")

DataDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Read the data directory of a server instead, running or not.")
]
Database: TypeAlias = Annotated[
    str,
    typer.Option(
        envvar="FEDROUND_DATABASE",
        help="With --data-dir: the postgresql:// URL, if the server uses one.",
    ),
]


@app.command()
def verify(
    context: typer.Context,
    head: Annotated[str, typer.Option(help="SEQUENCE:HASH recorded earlier, which the log must contain.")] = "",
    file: Annotated[Path | None, typer.Option(help="Verify a file of `fedround audit export` instead.")] = None,
    data_dir: DataDir = None,
    database: Database = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Verify the whole audit log on this machine, and print its head, to be recorded elsewhere.

    Exits with 1 if the log is broken, and with 3 if it cannot be read.
    """
    _check_source(context, data_dir, file)
    try:
        anchor = AuditHead.parse(head) if head else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with _exit_if_unreadable():
        items = _items(context, data_dir, database) if file is None else _read_file(file)
        report = verify_items(items, anchor)
    if form is Format.JSON:
        echo_json({**asdict(report), "head": str(report.head)})
        return
    entries, chains = _count(report.entries, "entry", "entries"), _count(report.chains + 1, "chain", "chains")
    echo(f"The audit log is valid: {entries} in {chains}.")
    echo(
        f"Updates and reports: {report.updates} accepted: {report.counted} counted, {report.superseded} superseded,"
        f" {report.waiting} waiting."
    )
    echo(f"Versions produced from them: {report.versions}. Denied calls: {report.refused}.")
    if report.uncovered:
        echo(f"Entries that the head does not cover, since they came after it was made: {report.uncovered}.")
    echo(f"Head, to be recorded elsewhere and given as --head the next time: {report.head}")


@app.command()
def head(context: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Print the head of the audit log without verifying it, to be recorded elsewhere."""
    with client_of(context) as client:
        found = client.audit_head()
    if form is Format.JSON:
        echo_json({"head": str(found)})
    else:
        echo(str(found))


@app.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file to write: JSON lines.")],
    data_dir: DataDir = None,
    database: Database = "",
    force: ForceOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Write the audit log to a file: one entry per line, and behind each chain its head."""
    _check_source(context, data_dir)
    check_new(file, force)
    count = 0
    # Read the first entry before the file is created, so that a log that cannot be read leaves no file.
    items = _items(context, data_dir, database)
    first = list(islice(items, 1))
    with file.open("w", encoding="utf-8") as out:
        for item in chain(first, items):
            is_head = isinstance(item, AuditHead)
            record = {"head": str(item), "chain": item.chain} if is_head else asdict(item)
            out.write(json.dumps(record) + "\n")
            count += not is_head
    if form is Format.JSON:
        echo_json({"path": str(file), "entries": count})
    else:
        echo(f"Exported {count} entries to {file}.", err=True)


@contextmanager
def _exit_if_unreadable() -> Iterator[None]:
    try:
        yield
    except AuditBroken:
        raise
    except typer.Exit:
        raise typer.Exit(ExitCode.UNREADABLE_AUDIT_LOG) from None
    except Exception:
        with print_errors(ExitCode.UNREADABLE_AUDIT_LOG):
            raise


def _check_source(context: typer.Context, data_dir: Path | None, file: Path | None = None) -> None:
    if file is not None and data_dir is not None:
        raise typer.BadParameter("--file and --data-dir exclude each other: choose one")
    source = context.get_parameter_source("database")
    # The environment variable may be set for a server, and does not select a log; the option does.
    if data_dir is None and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("--database needs the --data-dir of the same server")


def _items(context: typer.Context, data_dir: Path | None, database: str) -> Iterator[AuditEntry | AuditHead]:
    """Yields the entries of each chain, then its head, from the server or from its data directory."""
    if data_dir is not None:
        yield from _read_offline(data_dir, database)
        return
    with client_of(context) as client:
        yield from client.read_audit_log()


def _read_offline(data_dir: Path, database: str) -> Iterator[AuditEntry | AuditHead]:
    require("audit --data-dir", "server", ("fedround_server", "peewee", "pydantic_settings"))
    command = [sys.executable, "-P", "-m", "fedround_server.audit", "--data-dir", str(data_dir)]
    # A URL may contain a password, and the arguments of a process are visible to all users.
    environment = {**os.environ, "FEDROUND_DATABASE": database}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace", env=environment) as reader:  # noqa: S603 -- no shell
        if reader.stdout is not None:
            yield from _parse(reader.stdout)
    if reader.returncode:
        raise typer.Exit(1)


def _read_file(file: Path) -> Iterator[AuditEntry | AuditHead]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from _parse(lines)


def _parse(lines: Iterable[str]) -> Iterator[AuditEntry | AuditHead]:
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            yield _parse_head(data) if "head" in data else AuditEntry.from_json(data)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise AuditBroken(number, f"line {number} is not an entry of an export") from error


def _parse_head(data: Mapping[str, Any]) -> AuditHead:
    chain = data.get("chain", SERVER)
    if not isinstance(chain, str):
        raise TypeError("a chain is the id of a training")
    return AuditHead.parse(data["head"], chain)


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
