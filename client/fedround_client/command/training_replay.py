"""`fedround training replay`: computes versions once more, from the updates that the server has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from fedround_client.client import Client
from fedround_client.command import names
from fedround_client.command.output import UINT32, Format, FormatOption, echo_json, show_table
from fedround_client.command.session import client_of
from fedround_client.errors import ReplayImpossible

DIFFERENT = 1
"""Exit code if a version is not what was computed now."""


def replay(
    context: typer.Context,
    training: names.Training,
    number: Annotated[
        int | None, typer.Option("--round", min=1, max=UINT32, help="Number of the round, from 1; all by default.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="Leave out the updates of this participant; repeat for more."),
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Compute the versions of a training once more from its stored updates, and compare them with what is recorded.

    With --without, compute what each round would have made of its model without some participants; DISTANCE says how
    far that is from the version (L2). Exits with 1 if a version differs though nothing was left out.
    """
    with client_of(context) as client:
        training_id = names.training_id(client, training)
        users = names.user_ids(client, without or ())
        found = client.get_training(training_id)
        numbers = range(found.round + 1) if number is None else [number - 1]
        rows = list(_replayed(client, training_id, numbers, users, one=number is not None))
    if form is Format.JSON:
        echo_json(rows)
    else:
        header = ("ROUND", "VERSION", "UPDATES", "RESULT", "DISTANCE")
        show_table(header, ([row.get(name.lower(), "") for name in header] for row in rows))
    if any(row["result"] == "differs" for row in rows):
        raise typer.Exit(DIFFERENT)


def _replayed(
    client: Client, training_id: str, numbers: range | list[int], users: list[str], *, one: bool
) -> Iterator[dict[str, Any]]:
    for number in numbers:
        row: dict[str, Any] = {"round": number + 1}
        try:
            found = client.replay_round(training_id, number, users)
        except ReplayImpossible as error:
            if one:
                raise
            row["result"] = f"not replayed: {error.message}"
        else:
            row |= {"version": found.model_version, "updates": found.num_updates}
            row["replayed_sha256"], row["recorded_sha256"] = found.replayed_sha256, found.recorded_sha256
            same = found.replayed_sha256 == found.recorded_sha256
            row["result"] = "computed" if users else "the same" if same else "differs"
            if found.HasField("distance"):
                row["distance"] = found.distance
        yield row
