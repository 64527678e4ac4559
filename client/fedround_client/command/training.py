"""`fedround training`: create, start, watch and remove trainings."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from enum import StrEnum
from typing import Annotated

import typer

from fedround.v1.training_pb2 import TRAINING_STATE_ONGOING, Training, TrainingState
from fedround_client.command import (
    names,
    training_branches,
    training_clients,
    training_control,
    training_create,
    training_replay,
    training_round,
    training_rounds,
)
from fedround_client.command.event_lines import EventLines
from fedround_client.command.live import live_messages
from fedround_client.command.output import (
    Columns,
    Format,
    FormatOption,
    as_dict,
    echo,
    echo_json,
    enum_name,
    show_all,
    show_removed,
    when,
)
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import show_training
from fedround_client.errors import FedroundError
from fedround_client.round_number import planned_rounds

app = typer.Typer(no_args_is_help=True, help="Create, start, watch and remove trainings.")
app.add_typer(training_clients.app, name="clients")
app.command("create")(training_create.create)
app.command("round")(training_round.round_)
app.command("rounds")(training_rounds.rounds)
app.command("replay")(training_replay.replay)
for _branches in (training_branches.contributions, training_branches.shadows, training_branches.evaluate):
    app.command()(_branches)
for _change in (training_control.stop, training_control.pause, training_control.resume, training_control.config):
    app.command()(_change)


class TrainingRoleChoice(StrEnum):
    """Which trainings are listed."""

    ACTOR = "ACTOR"
    CLIENT = "CLIENT"
    VIEWER = "VIEWER"


_COLUMNS: Columns[Training] = {
    "TRAINING_ID": lambda training: training.training_id,
    "NAME": lambda training: training.spec.name,
    "STATE": lambda training: enum_name(TrainingState, training.state),
    "ROUND": lambda training: (
        f"{training.round + 1}/{planned_rounds(training.spec)}" if training.HasField("start_time") else ""
    ),
    "UPDATES": lambda training: f"{training.updates_arrived}/{training.updates_expected}",
    "VERSION": lambda training: f"{training.model_version}/{training.spec.target_num_updates}",
    "BEST": lambda training: training.best_version if training.HasField("best_version") else "",
    "MODEL_ID": lambda training: training.model_id,
    "CREATED": lambda training: when(training.create_time),
}

_ACTOR: Columns[Training] = {"ACTOR": lambda training: training.actor_name}


@app.command()
def start(context: typer.Context, training: names.Training, form: FormatOption = Format.TABLE) -> None:
    """Start a training."""
    with client_of(context) as client:
        show_training(client.start_training(names.training_id(client, training)), form)


@app.command("list")
def list_(
    context: typer.Context,
    role: Annotated[
        TrainingRoleChoice | None,
        typer.Option(
            case_sensitive=False,
            help="Those that you created, or participate in, or all; by default all for a viewer, else your own.",
        ),
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List your trainings, the newest first; as a viewer all trainings, with their actors."""
    with client_of(context) as client:
        found = list(client.trainings(None if role is None else role.value))
    several = len({training.actor_id for training in found}) > 1
    show_all(found, {**_COLUMNS, **(_ACTOR if several else {})}, form)


@app.command("show")
def show_(context: typer.Context, training: names.Training, form: FormatOption = Format.TABLE) -> None:
    """Show what a training is doing, and for whom its round waits."""
    with client_of(context) as client:
        found, current = client.get_training(names.training_id(client, training)), None
        if form is Format.TABLE and found.state == TRAINING_STATE_ONGOING:
            # A participant may not see the round.
            with suppress(FedroundError):
                current = client.get_round(found.training_id)
        if current is not None:
            known = {one.user_id: one.name for one in current.participants}
        else:
            ids = found.participant_ids if form is Format.TABLE else ()
            known = names.participant_names(client, found.training_id, ids) if ids else {}
    show_training(found, form, current=current, names=known)


@app.command()
def remove(
    context: typer.Context,
    training: names.Training,
    force: Annotated[bool, typer.Option("--force", help="Remove it even if it is running.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Remove a training; its model stays."""
    with client_of(context) as client:
        training_id = names.training_id(client, training)
        client.remove_training(training_id, force=force)
    show_removed("training", training_id, form)


@app.command()
def wait(
    context: typer.Context,
    training: names.Training,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Wait until a training is completed, and say whom it waits for; exits with 1 if it fails."""
    with client_of(context) as client:
        training_id = names.training_id(client, training)
        # Programs that ask for JSON often read both streams as one.
        with live_messages("waiting for the training") if form is Format.TABLE else nullcontext():
            ended = client.wait(training_id, timeout)
    show_training(ended, form)


@app.command()
def watch(
    context: typer.Context,
    training: Annotated[
        str,
        typer.Argument(
            metavar="[TRAINING]",
            help="The training: its name, its id, or the first characters of its id; all of yours by default.",
            autocompletion=names.complete_trainings,
        ),
    ] = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Print events as they happen, one per line (with JSON: one object per line)."""
    with client_of(context) as client:
        training_id = names.training_id(client, training) if training else None
        lines = EventLines(client, several=training_id is None)
        # For people, heartbeats are moments to look whether more participants are connected.
        for event in client.watch(training_id, heartbeats=training_id is not None and form is Format.TABLE):
            if form is Format.JSON:
                echo_json(as_dict(event), indent=None)
            elif event.HasField("heartbeat"):
                if line := lines.waiting_line(event):
                    echo(line)
            else:
                echo(lines.line(event))
