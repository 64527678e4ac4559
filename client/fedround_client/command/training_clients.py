"""`fedround training clients`: the participants of a training."""

from __future__ import annotations

import typer

from fedround_client.command import names
from fedround_client.command.output import Format, FormatOption, echo, echo_json, show_table
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import show_training

app = typer.Typer(no_args_is_help=True, help="List, register and remove the participants of a training.")


@app.command("list")
def list_(context: typer.Context, training: names.Training, form: FormatOption = Format.TABLE) -> None:
    """List the participants; a participant sees only itself. With JSON: their ids."""
    with client_of(context) as client:
        found = client.get_training(names.training_id(client, training))
        known = names.user_names(client) if form is Format.TABLE else {}
    ids = list(found.participant_ids)
    if form is Format.JSON:
        echo_json(ids)
    else:
        show_table(("USER_ID", "NAME"), ((user_id, known.get(user_id, "")) for user_id in ids))
    if len(ids) < found.num_participants:
        echo(f"These are {len(ids)} of {found.num_participants} participants.", err=True)


@app.command()
def add(
    context: typer.Context, training: names.Training, clients: names.Users, form: FormatOption = Format.TABLE
) -> None:
    """Register users; they join a running training when the next round is opened, or one repeated."""
    with client_of(context) as client:
        ids = names.user_ids(client, clients)
        show_training(client.register_clients(names.training_id(client, training), ids), form)


@app.command()
def remove(
    context: typer.Context, training: names.Training, clients: names.Users, form: FormatOption = Format.TABLE
) -> None:
    """Remove participants; their updates in the open round are discarded."""
    with client_of(context) as client:
        ids = names.user_ids(client, clients)
        show_training(client.remove_clients(names.training_id(client, training), ids), form)
