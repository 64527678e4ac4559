"""`fedround training`: create, start, watch and remove trainings."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict

from fedround.v1.event_pb2 import Event
from fedround.v1.training_pb2 import Training, TrainingState
from fedround_client.command import training_clients, training_create, training_round
from fedround_client.command.live import live_messages
from fedround_client.command.output import (
    Columns,
    Format,
    FormatOption,
    as_dict,
    show,
    show_all,
    state_name,
    when,
)
from fedround_client.command.session import client_of

app = typer.Typer(no_args_is_help=True, help="Create, start, watch and remove trainings.")
app.add_typer(training_clients.app, name="clients")
app.command("create")(training_create.create)
app.command("round")(training_round.round_)


class TrainingRoleChoice(StrEnum):
    """Which trainings are listed."""

    ACTOR = "ACTOR"
    CLIENT = "CLIENT"


TrainingId = Annotated[str, typer.Argument(metavar="TRAINING_ID", help="UUID of the training.")]

_COLUMNS: Columns[Training] = {
    "TRAINING_ID": lambda training: training.training_id,
    "NAME": lambda training: training.spec.name,
    "STATE": lambda training: state_name(TrainingState.Name(training.state)),
    "ROUND": lambda training: training.round,
    "UPDATES": lambda training: f"{training.updates_arrived}/{training.updates_expected}",
    "VERSION": lambda training: f"{training.model_version}/{training.spec.target_num_updates}",
    "BEST": lambda training: training.best_version if training.HasField("best_version") else "",
    "MODEL_ID": lambda training: training.model_id,
    "CREATED": lambda training: when(training.create_time),
}


@app.command()
def start(context: typer.Context, training_id: TrainingId, form: FormatOption = Format.TABLE) -> None:
    """Start a training."""
    with client_of(context) as client:
        show(client.start_training(training_id), form)


@app.command("list")
def list_(
    context: typer.Context,
    role: Annotated[
        TrainingRoleChoice,
        typer.Option(case_sensitive=False, help="Those that you created, or participate in."),
    ] = TrainingRoleChoice.ACTOR,
    form: FormatOption = Format.TABLE,
) -> None:
    """List your trainings, the newest first."""
    with client_of(context) as client:
        show_all(client.trainings(role.value), _COLUMNS, form)


@app.command("show")
def show_(context: typer.Context, training_id: TrainingId, form: FormatOption = Format.TABLE) -> None:
    """Show a training."""
    with client_of(context) as client:
        show(client.get_training(training_id), form)


@app.command()
def remove(
    context: typer.Context,
    training_id: TrainingId,
    force: Annotated[bool, typer.Option("--force", help="Remove it even if it is running.")] = False,
) -> None:
    """Remove a training; its model stays."""
    with client_of(context) as client:
        client.remove_training(training_id, force=force)
    typer.echo(f"Training {training_id} is removed.", err=True)


@app.command()
def wait(
    context: typer.Context,
    training_id: TrainingId,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Wait until a training is completed, and say whom it waits for; exits with 1 if it fails."""
    with client_of(context) as client:
        with live_messages():
            training = client.wait(training_id, timeout)
        show(training, form)


@app.command()
def watch(
    context: typer.Context,
    training_id: Annotated[
        str, typer.Argument(metavar="[TRAINING_ID]", help="UUID of the training; all of yours by default.")
    ] = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Print events as they happen, one per line (with JSON: one object per line)."""
    with client_of(context) as client:
        for event in client.watch(training_id or None):
            typer.echo(json.dumps(as_dict(event)) if form is Format.JSON else _line(event))


def _line(event: Event) -> str:
    kind = event.WhichOneof("payload") or "unknown"
    details = MessageToDict(event, preserving_proto_field_name=True).get(kind, {})
    return f"{when(event.create_time)}  {event.training_id}  {event.sequence:>5}  {kind}  {json.dumps(details)}"
