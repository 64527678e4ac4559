"""`fedround dashboard`: pages about trainings for a browser."""

from __future__ import annotations

import os
import time
import webbrowser
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedround_client.address import is_loopback_host
from fedround_client.client import Client
from fedround_client.command.failures import fail
from fedround_client.command.output import echo
from fedround_client.command.session import Session

_MODULES = ("jinja2", "starlette", "uvicorn")


def dashboard(
    context: typer.Context,
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 for a free one.")] = "127.0.0.1:8080",
    open_: Annotated[bool, typer.Option("--open", help="Open it in your browser.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name that visitors type, if it is not that of --listen. Repeatable.")
    ] = None,
    https_cert: Annotated[Path | None, typer.Option(help="PEM file of the dashboard's certificate, for HTTPS.")] = None,
    https_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    insecure_listen: Annotated[
        bool,
        typer.Option("--insecure-listen", help="Serve plain HTTP to other machines: tokens can be read on the way."),
    ] = False,
    idle_minutes: Annotated[float, typer.Option(min=1, help="Sign out visitors who open no page for so long.")] = 60,
    session_hours: Annotated[float, typer.Option(min=0.1, help="Sign out visitors after so long in any case.")] = 12,
) -> None:
    """Serve pages about trainings: live rounds, curves, participants, versions, and control for actors.

    Every visitor signs in with a token, and sees and does what the server allows it: a VIEWER sees all trainings. With
    a token in FEDROUND_TOKEN or --token-file, the command also prints a link that signs you in once, within ten
    minutes.
    """
    missing = [module for module in _MODULES if find_spec(module) is None]
    if missing:
        fail(
            "EXTRA_MISSING",
            f"`fedround dashboard` needs {', '.join(missing)}, not installed here."
            ' Install it with: pip install "fedround[dashboard]"',
        )
    # Imported here: they need the extra.
    from fedround_client.dashboard.app import Dashboard
    from fedround_client.dashboard.server import bind, make_server
    from fedround_client.dashboard.settings import Settings, allowed_hosts, parse_listen
    from fedround_client.dashboard.sign_in import OperatorLink, link_path

    session = Session.of(context)
    try:
        host, port = parse_listen(listen)
        hosts = allowed_hosts(host, allowed_host or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if (https_cert is None) != (https_key is None):
        raise typer.BadParameter("--https-cert and --https-key belong together.")
    if https_cert is None and not is_loopback_host(host) and not insecure_listen:
        raise typer.BadParameter(
            f"Tokens could be read on the way to {listen}. Pass --https-cert and --https-key, or listen on 127.0.0.1"
            " behind a proxy that speaks HTTPS; --insecure-listen serves plain HTTP all the same."
        )
    token = session.own_token()
    # A browser that is opened would inherit it.
    os.environ.pop("FEDROUND_TOKEN", None)

    def open_client(token: str) -> Client:
        return replace(session, token=token, token_file=None).client()

    # The address, and the files of TLS, are checked before the first visitor comes.
    open_client("unused").close()
    if token:
        with open_client(token) as client:
            user = client.myself()
    settings = Settings(
        host,
        port,
        hosts,
        server=session.server,
        open_client=open_client,
        idle_seconds=60 * idle_minutes,
        session_seconds=3600 * session_hours,
        certificate=None if https_cert is None or https_key is None else (https_cert, https_key),
    )
    try:
        bound = bind(settings)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
        fail("LISTEN_FAILED", f"Cannot listen on {listen}: {why}. Choose another address with --listen.")
    with bound as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        scheme, shown = "http" if https_cert is None else "https", f"[{host}]" if ":" in host else host
        address = f"{scheme}://{shown}:{settings.port}/"
        link = OperatorLink(token, time.monotonic) if token else None

        def ready() -> None:
            echo(f"The dashboard of {session.server} is at {address}")
            if link is not None:
                echo(f"Sign in as {user.name} with this link, once, within ten minutes: {address}{link_path(link)[1:]}")
            if open_:
                webbrowser.open(address if link is None else address + link_path(link)[1:])

        make_server(Dashboard(settings, link), settings, ready).run(sockets=[listener])
