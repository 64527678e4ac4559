"""`fedround training stop`, `pause`, `resume` and `config`: what an actor does with a training while it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from fedround_client.command import names
from fedround_client.command.config_options import (
    ClientConfigOptions,
    ConfigOptions,
    parse_changes,
    parse_client_changes,
)
from fedround_client.command.output import Format, FormatOption
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import show_training


def stop(
    context: typer.Context,
    training: names.Training,
    now: Annotated[
        bool, typer.Option("--now", help="Abandon the open round instead of waiting for its result.")
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """End a training before its target: after the open round, or with --now at once. Its versions are kept."""
    with client_of(context) as client:
        show_training(client.stop_training(names.training_id(client, training), now=now), form)


def pause(context: typer.Context, training: names.Training, form: FormatOption = Format.TABLE) -> None:
    """Have no further round opened; an open round continues to its end, with its deadline."""
    with client_of(context) as client:
        show_training(client.pause_training(names.training_id(client, training)), form)


def resume(context: typer.Context, training: names.Training, form: FormatOption = Format.TABLE) -> None:
    """End a pause: the next round opens at once, unless one is open."""
    with client_of(context) as client:
        show_training(client.resume_training(names.training_id(client, training)), form)


def config(
    context: typer.Context,
    training: names.Training,
    values: ConfigOptions = None,
    client_values: ClientConfigOptions = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Change what participants get, from the next round on; NAME= without a value removes one, and others stay."""
    if not values and not client_values:
        raise typer.BadParameter("give --config or --client-config; `fedround training show` shows the configuration")
    changes = parse_changes(values or ())
    with client_of(context) as client:
        changed = client.update_config(
            names.training_id(client, training),
            changes,
            client_config=parse_client_changes(client, client_values or ()),
        )
        known = names.user_names(client) if changed.spec.client_config and form is Format.TABLE else {}
    show_training(changed, form, names=known)
