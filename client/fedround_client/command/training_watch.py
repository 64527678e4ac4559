"""`fedround training watch`: a live view on a terminal, else a line for each event."""

from __future__ import annotations

from typing import Annotated, NoReturn

import grpc
import typer

from fedround_client.client import Client
from fedround_client.command import names
from fedround_client.command.event_lines import EventLines
from fedround_client.command.output import Format, FormatOption, as_dict, echo, echo_json, screen_console
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import show_training
from fedround_client.command.watching.live_view import show_live
from fedround_client.errors import RemovedFromTraining
from fedround_client.exit_codes import code_of_event, code_of_training


def watch(
    context: typer.Context,
    training: Annotated[
        str,
        typer.Argument(
            metavar="TRAINING",
            help="The training: its name, its id, or the first characters of its id; all of yours by default.",
            autocompletion=names.complete_trainings,
        ),
    ] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Print lines on a terminal, too.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Watch a training: its round, who is missing, its metrics and its events, until it ends.

    On a terminal, the view changes in place; elsewhere, and for all trainings together, it prints events as they
    happen, one per line (with JSON: one object per line). Exits like `fedround training wait`: with 0 when the training
    is completed, 4 if it failed, 5 if its actor stopped it, 6 if its privacy budget ended it, 7 if it was removed.
    """
    with client_of(context) as client:
        training_id = names.training_id(client, training) if training else ""
        console = None if plain or form is Format.JSON else screen_console()
        if not training_id or console is None:
            _print_lines(client, training_id, form)
        if not show_live(client, training_id, console):
            raise _removed()
        ended = client.wait(training_id)
    show_training(ended, form)
    raise typer.Exit(code_of_training(ended))


def _print_lines(client: Client, training_id: str, form: Format) -> NoReturn:
    """Prints events, and exits after the last one of the training."""
    lines = EventLines(client, several=not training_id)
    # For people, heartbeats are moments to look whether more participants are connected.
    for event in client.watch(training_id or None, heartbeats=bool(training_id) and form is Format.TABLE):
        if form is Format.JSON:
            echo_json(as_dict(event), indent=None)
        elif event.HasField("heartbeat"):
            if line := lines.waiting_line(event):
                echo(line)
        else:
            echo(lines.line(event))
        if training_id and (code := code_of_event(event)) is not None:
            raise typer.Exit(code)
    raise _removed()


def _removed() -> RemovedFromTraining:
    return RemovedFromTraining(
        grpc.StatusCode.ABORTED, "CLIENT_REMOVED", "You were removed from the training, and see no more of it."
    )
