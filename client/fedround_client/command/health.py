"""`fedround health`: a probe for service managers and container platforms."""

from __future__ import annotations

from typing import Annotated

import typer

from fedround_client.command.output import echo
from fedround_client.command.session import Session
from fedround_client.errors import FedroundError
from fedround_client.health import ask_health


def health(
    context: typer.Context,
    service: Annotated[str, typer.Option(help="Full name of a service; the whole server by default.")] = "",
    live: Annotated[
        bool, typer.Option("--live", help="Succeed if the server answers, also while it shuts down.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that the answer may take.")] = 5.0,
) -> None:
    """Ask whether the server serves; exits with 0 if it does, else with 1. Needs no token.

    With several addresses, all are asked, and one line each is printed; the server serves if one of them does.
    """
    try:
        targets = Session.of(context).targets()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    statuses = []
    for target in targets:
        try:
            with target.open_channel() as channel:
                statuses.append(ask_health(channel, target, service, timeout))
        except FedroundError as error:
            if len(targets) == 1:
                raise
            echo(f"{target.server} {error.reason}")
        else:
            echo(statuses[-1] if len(targets) == 1 else f"{target.server} {statuses[-1]}")
    if not statuses or not (live or "SERVING" in statuses):
        raise typer.Exit(1)
