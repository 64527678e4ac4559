"""`fedround relay`: take part in the trainings of another server, with the participants of this one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedround_client.command.labels import parse_labels
from fedround_client.command.live import live_messages
from fedround_client.command.names import training_id
from fedround_client.command.session import Session, client_of
from fedround_client.relay_round import RelayOptions

TOKEN_VARIABLE = "FEDROUND_PARENT_TOKEN"  # noqa: S105 - the name of a variable

WITHOUT = (
    f"Set {TOKEN_VARIABLE}, or pass --parent-token-file, for the relay's user at the parent; or --parent-tls-cert, if"
    " the parent knows it by its certificate."
)


def relay(
    context: typer.Context,
    parent: Annotated[
        str,
        typer.Option(
            envvar="FEDROUND_PARENT", help="HOST:PORT of the parent, in whose trainings the relay takes part."
        ),
    ],
    parent_token_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the token of the relay's user at the parent; by default {TOKEN_VARIABLE}."),
    ] = None,
    parent_tls_ca: Annotated[Path | None, typer.Option(help="PEM file of the parent's certificate authority.")] = None,
    parent_tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the relay's certificate there.")] = None,
    parent_tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    parent_insecure: Annotated[
        bool, typer.Option("--parent-insecure", help="Use plaintext to the parent, even on another machine.")
    ] = False,
    training: Annotated[
        str | None,
        typer.Option(
            metavar="TRAINING",
            help="Name or id of a training of the parent: take part in this one only, until it ends; by default in all,"
            " one round at a time.",
        ),
    ] = None,
    min_updates: Annotated[
        int, typer.Option(min=1, help="Send nothing if fewer participants have submitted at the deadline.")
    ] = RelayOptions.min_updates,
    margin: Annotated[
        float, typer.Option(min=0, help="Seconds before the parent's deadline at which participants must be done.")
    ] = RelayOptions.margin,
    absent_after: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds that a participant may be without a connection before a round no longer waits for it; as in"
            " the parent's training by default.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only users with this label take part. Repeatable.")
    ] = None,
    allow_relays: Annotated[
        bool,
        typer.Option(
            "--allow-relays", help="Participants may be relays. Without it, they can send single updates only."
        ),
    ] = False,
) -> None:
    """Take part in trainings of the parent with one update a round: the exact sum of those of this server's clients.

    --server is the relay's own server, at which --token is that of an actor that has no other trainings. All users with
    the role CLIENT there take part. The command runs until it is interrupted, and may be killed and started again at
    any moment. It runs one round after another; with --training, several of it serve trainings side by side.
    """
    session = Session(
        server=parent,
        token=os.environ.pop(TOKEN_VARIABLE, ""),
        token_file=parent_token_file,
        tls_ca=parent_tls_ca,
        tls_cert=parent_tls_cert,
        tls_key=parent_tls_key,
        insecure=parent_insecure,
    )
    options = RelayOptions(min_updates, margin, absent_after, parse_labels(label or []), allow_relays)
    with client_of(context) as own, session.client(WITHOUT) as upstream, live_messages("relaying"):
        upstream.relay(own, options, training_id=training and training_id(upstream, training))
