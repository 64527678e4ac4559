"""`fedround audit`: what was changed on a server, by whom, and that nobody touched the record of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from fedround_client.audit_chain import AuditBroken, AuditChainVerifier, AuditEntry, AuditHead, AuditReport
from fedround_client.command.output import Format, FormatOption
from fedround_client.command.serve import require
from fedround_client.command.session import client_of, fail, telling_errors

app = typer.Typer(no_args_is_help=True, help="Verify the audit log, or keep its head or a copy of it. For admins.")

CANNOT_LOOK = 3
"""What `verify` exits with when there is no log to verify; 1 is for a log that is broken."""

DataDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Read a server's data directory instead, whether it runs or not.")
]
Database: TypeAlias = Annotated[
    str, typer.Option(envvar="FEDROUND_DATABASE", help="With --data-dir: its postgresql:// URL, if it has one.")
]


@app.command()
def verify(
    context: typer.Context,
    head: Annotated[str, typer.Option(help="SEQUENCE:HASH as noted earlier; the log has to go through it.")] = "",
    file: Annotated[Path | None, typer.Option(help="Verify what `fedround audit export` wrote instead.")] = None,
    data_dir: DataDir = None,
    database: Database = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Verify the whole audit log on this machine, and print its head, to be noted elsewhere.

    Exits with 1 if it is broken, and with 3 if it cannot be read.
    """
    _check_source(context, data_dir, file)
    try:
        verifier = AuditChainVerifier(AuditHead.parse(head) if head else None)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        with _looking():
            report = _verify(verifier, _items(context, data_dir, database) if file is None else _lines(file))
    except AuditBroken as error:
        fail(f"AUDIT_BROKEN: {error}")
    if form is Format.JSON:
        typer.echo(json.dumps({**asdict(report), "head": str(report.head)}, indent=2))
        return
    typer.echo(f"The audit log holds, all {report.head.sequence} entries of it.")
    typer.echo(
        f"Updates and reports, {report.updates} accepted: {report.counted} counted, {report.superseded} superseded,"
        f" {report.waiting} waiting."
    )
    typer.echo(f"Versions made of them: {report.versions}. Refused calls: {report.refused}.")
    typer.echo(f"Head, to be noted elsewhere, and given as --head the next time: {report.head}")


@app.command()
def head(context: typer.Context) -> None:
    """Print the head of the audit log without verifying it, to be noted elsewhere."""
    with client_of(context) as client:
        typer.echo(client.audit_head())


@app.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file to write: JSON lines.")],
    data_dir: DataDir = None,
    database: Database = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write the audit log to a file: an entry a line, and the head as the last line."""
    _check_source(context, data_dir)
    if file.exists() and not force:
        raise typer.BadParameter(f"{file} exists: give --force to overwrite it, or another name")
    count = 0
    # The file is made when there is something to write: what keeps from reading the log leaves none behind.
    items = _items(context, data_dir, database)
    first = list(islice(items, 1))
    with file.open("w", encoding="utf-8") as out:
        for item in chain(first, items):
            found: dict[str, Any] = {"head": str(item)} if isinstance(item, AuditHead) else asdict(item)
            out.write(json.dumps(found) + "\n")
            count += isinstance(item, AuditEntry)
    typer.echo(f"{count} entries are in {file}.", err=True)


def _verify(verifier: AuditChainVerifier, items: Iterable[AuditEntry | AuditHead]) -> AuditReport:
    head = None
    for item in items:
        if isinstance(item, AuditHead):
            head = item
        else:
            verifier.add(item)
    return verifier.finish(head)


@contextmanager
def _looking() -> Iterator[None]:
    try:
        with telling_errors():
            yield
    except typer.Exit:
        raise typer.Exit(CANNOT_LOOK) from None


def _check_source(context: typer.Context, data_dir: Path | None, file: Path | None = None) -> None:
    if file is not None and data_dir is not None:
        raise typer.BadParameter("--file and --data-dir are two logs: choose one")
    source = context.get_parameter_source("database")
    # A variable that is set for the server means no log; an option does.
    if data_dir is None and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("--database goes with the --data-dir of its server")


def _items(context: typer.Context, data_dir: Path | None, database: str) -> Iterator[AuditEntry | AuditHead]:
    """Reads the log where it is; the head comes last."""
    if data_dir is not None:
        yield from _offline(data_dir, database)
        return
    with client_of(context) as client:
        head = client.audit_head()
        yield from client.read_audit(until=head)
        yield head


def _offline(data_dir: Path, database: str) -> Iterator[AuditEntry | AuditHead]:
    require("audit --data-dir", "server", ("fedround_server", "peewee", "pydantic_settings"))
    command = [sys.executable, "-P", "-m", "fedround_server.audit", "--data-dir", str(data_dir)]
    # A URL may have a password in it, and everybody can see the arguments of a process.
    environment = {**os.environ, "FEDROUND_DATABASE": database}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as reader:  # noqa: S603 -- no shell
        if reader.stdout is not None:
            yield from _parse(reader.stdout)
    if reader.returncode:
        raise typer.Exit(1)


def _lines(file: Path) -> Iterator[AuditEntry | AuditHead]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from _parse(lines)


def _parse(lines: Iterable[str]) -> Iterator[AuditEntry | AuditHead]:
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            yield AuditHead.parse(data["head"]) if "head" in data else AuditEntry.from_json(data)
        except (ValueError, TypeError, AttributeError) as error:
            raise AuditBroken(number, f"line {number} is not an entry of an export") from error
