"""The `fedround` command."""

from __future__ import annotations

import sys
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from fedround_client.client import DEFAULT_SERVER
from fedround_client.command import (
    audit,
    backup,
    collect,
    convert,
    dashboard,
    database,
    demo,
    doctor,
    health,
    init,
    metrics,
    model,
    objects,
    predict,
    protoset,
    relay,
    serve,
    simulate,
    top,
    track,
    training,
    user,
)
from fedround_client.command.output import echo
from fedround_client.command.session import Group

app = typer.Typer(
    name="fedround",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with locals would show the token
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated learning over gRPC: run a server, manage trainings, download models, predict.",
)
app.add_typer(user.app, name="user")
app.add_typer(training.app, name="training")
app.add_typer(model.app, name="model")
app.add_typer(audit.app, name="audit")
app.command("metrics")(metrics.metrics)
app.command("track")(track.track)
app.command("collect")(collect.collect)
app.command("predict")(predict.predict)
app.command("convert")(convert.convert)
app.command("dashboard")(dashboard.dashboard)
app.command("doctor")(doctor.doctor)
app.command("health")(health.health)
app.command("init")(init.init)
app.command("top")(top.top)
app.command("protoset")(protoset.protoset)
app.command("relay")(relay.relay)
app.command("simulate")(simulate.run)
app.command("serve", context_settings=serve.PASS_THROUGH)(serve.serve)
app.command("backup", context_settings=serve.PASS_THROUGH)(backup.backup)
app.command("restore", context_settings=serve.PASS_THROUGH)(backup.restore)
app.command("objects", context_settings=serve.PASS_THROUGH)(objects.objects)
app.command("database", context_settings=serve.PASS_THROUGH)(database.database)
app.command("demo", context_settings=serve.PASS_THROUGH)(demo.demo)


def _print_version(requested: bool) -> None:
    if requested:
        try:
            echo(version("fedround"))
        except PackageNotFoundError:
            echo("unknown: fedround is run from its sources, not installed")
        raise typer.Exit


@app.callback(epilog="The options of a server and a token may also stand after the command.")
def options(
    server: Annotated[
        str,
        typer.Option(
            envvar="FEDROUND_SERVER",
            help="HOST:PORT of the server, or a list like HOST:PORT,HOST:PORT of its replicas.",
        ),
    ] = DEFAULT_SERVER,
    token: Annotated[
        str,
        typer.Option(envvar="FEDROUND_TOKEN", help="Your token. Others may see it here: prefer the environment."),
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="File with your token; overrides the environment.")] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(envvar="FEDROUND_TLS_CA", help="PEM file of the server's certificate authority."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="FEDROUND_TLS_CERT", help="PEM file of your certificate.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="FEDROUND_TLS_KEY", help="PEM file of its key.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Use plaintext, even to another machine.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning over gRPC: run a server, manage trainings, download models, predict."""


def main() -> None:
    """Runs the command. Exits with 0, with 1 after an error, with 2 after a usage error, with 130 on Ctrl-C."""
    if not sys.warnoptions:
        # Such as those of torch, which concern the author of a program, and not who uses it.
        warnings.simplefilter("ignore")
    try:
        app(prog_name="fedround")
    except Exception:
        # A defect. Printed here, since a server may have chosen words of the error.
        echo(traceback.format_exc().rstrip(), err=True)
        sys.exit(1)
