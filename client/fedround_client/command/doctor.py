"""`fedround doctor`: check the installation, the server and the token; on the server's machine, that too."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedround.v1.user_pb2 import ROLE_ADMIN, ROLE_VIEWER, Role
from fedround_client.address import is_loopback
from fedround_client.channel import Target
from fedround_client.command.doctor_server import Finding, check_machine, check_status
from fedround_client.command.output import Format, FormatOption, echo_json, enum_name, show_table
from fedround_client.command.session import Session
from fedround_client.command.top_view import replica_name
from fedround_client.errors import FedroundError
from fedround_client.health import ask_health

REACH_SECONDS = 5.0
OPERATORS = (ROLE_ADMIN, ROLE_VIEWER)
OPTIONAL = {
    "server": ("fedround_server", "peewee", "prometheus_client", "pydantic_settings", "structlog", "torch"),
    "postgres": ("psycopg", "psycopg_pool"),
    "s3": ("obstore",),
    "ray": ("ray",),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc"),
    "demo": ("matplotlib", "sklearn"),
}


def doctor(
    context: typer.Context,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="On the server's machine: check this data directory and all that its server needs."),
    ] = None,
    database: Annotated[
        str,
        typer.Option(
            envvar="FEDROUND_DATABASE", help="With --data-dir: the postgresql:// URL, if the server uses one."
        ),
    ] = "",
    objects: Annotated[
        str,
        typer.Option(
            envvar="FEDROUND_OBJECTS", help="With --data-dir: the s3:// URL, if the server has its files in a bucket."
        ),
    ] = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Check the installation, the server and your token; exits with 1 if a check fails.

    With --data-dir, check a server's machine, beside a running server or without one. The other settings are those of
    the FEDROUND_* variables and of fedround.toml, as for `fedround serve`; the connection is checked if there is a
    token. Admins and viewers also learn of what the server is doing.
    """
    session = Session.of(context)
    findings = list(_installation())
    if data_dir is not None:
        findings += check_machine(data_dir, database, objects)
    if data_dir is None or session.token or session.token_file or session.tls_cert:
        findings += _server(session)
    if form is Format.JSON:
        echo_json([asdict(finding) for finding in findings])
    else:
        show_table(("CHECK", "STATE", "FOUND"), ((one.check, one.state, one.found) for one in findings))
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _installation() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    for package in ("fedround", "grpcio", "protobuf", "numpy"):
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(package, "note", "run from its sources, not installed")
    for extra, modules in OPTIONAL.items():
        missing = [module for module in modules if not _is_installed(module)]
        install = f'{", ".join(missing)} not installed; if you need it: pip install "fedround[{extra}]"'
        yield Finding(f"extra {extra}", "note" if missing else "ok", install if missing else "installed")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # A package that it would be in.
        return False


def _server(session: Session) -> Iterator[Finding]:
    """Checks the connection, then the health of the server, then the token; stops at the first failure."""
    where = "this machine" if is_loopback(session.server) else "another machine"
    yield Finding("server", "ok", f"{session.server}, {where}")
    try:
        targets = session.targets()
        found = [_health(target, is_replica=len(targets) > 1) for target in targets]
        yield from found
        serving = [target.server for target, health in zip(targets, found, strict=True) if health.state != "fail"]
        if not serving:
            return
        with replace(session, server=serving[0]).client() as client:
            me = client.myself()
            status = client.server_status() if me.role in OPERATORS else None
    except (FedroundError, OSError, ValueError) as error:
        yield Finding("token" if isinstance(error, FedroundError) else "connection", "fail", str(error))
    else:
        yield Finding("token", "ok", f"of {me.name}, {enum_name(Role, me.role)}, {me.user_id}")
        if status is not None:
            name = replica_name(status) or (serving[0] if len(targets) > 1 else "")
            for one in check_status(status):
                yield replace(one, check=f"{one.check} {name}".rstrip())


def _health(target: Target, *, is_replica: bool) -> Finding:
    """Checks a server, or one of its replicas."""
    where = f" {target.server}" if is_replica else ""
    try:
        with target.open_channel() as channel:
            status = ask_health(channel, target, "", REACH_SECONDS)
    except FedroundError as error:
        return Finding(f"connection{where}", "fail", str(error))
    if status == "SERVING":
        return Finding(f"health{where}", "ok", "serving")
    return Finding(f"health{where}", "fail", "not serving: the server is starting or shutting down, try again")
