"""`fedround training clients`: the participants of a training."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedround_client.command.output import Format, FormatOption, show
from fedround_client.command.session import client_of

app = typer.Typer(no_args_is_help=True, help="List, register and remove the participants of a training.")

TrainingId = Annotated[str, typer.Argument(metavar="TRAINING_ID", help="UUID of the training.")]
ClientIds = Annotated[list[str], typer.Argument(metavar="CLIENT_ID...", help="UUIDs of users.")]


@app.command("list")
def list_(context: typer.Context, training_id: TrainingId, form: FormatOption = Format.TABLE) -> None:
    """List the UUIDs of the participants; a participant sees only its own."""
    with client_of(context) as client:
        training = client.get_training(training_id)
    ids = list(training.participant_ids)
    typer.echo(json.dumps(ids, indent=2) if form is Format.JSON else "\n".join(ids))
    if len(ids) < training.num_participants:
        typer.echo(f"These are {len(ids)} of {training.num_participants} participants.", err=True)


@app.command()
def add(
    context: typer.Context, training_id: TrainingId, client_ids: ClientIds, form: FormatOption = Format.TABLE
) -> None:
    """Register users; they join a running training when the next round is opened, or one repeated."""
    with client_of(context) as client:
        show(client.register_clients(training_id, client_ids), form)


@app.command()
def remove(
    context: typer.Context, training_id: TrainingId, client_ids: ClientIds, form: FormatOption = Format.TABLE
) -> None:
    """Remove participants; their updates in the open round are discarded."""
    with client_of(context) as client:
        show(client.remove_clients(training_id, client_ids), form)
