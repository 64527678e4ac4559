"""`fedround training replay`: computes versions once more, from the updates that the server has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from fedround.v1.training_pb2 import Training
from fedround_client.client import Client
from fedround_client.command import names
from fedround_client.command.output import UINT32, Format, FormatOption, echo, echo_json, show_table
from fedround_client.command.session import client_of
from fedround_client.errors import ReplayImpossible

DIFFERENT = 1
"""Exit code if a version is not what was computed now."""
DIGITS = 12
"""How much of a digest tables show."""


def replay(
    context: typer.Context,
    training: names.Training,
    number: Annotated[
        int | None,
        typer.Argument(metavar="ROUND", min=1, max=UINT32, help="Number of the round, from 1; all by default."),
    ] = None,
    option: names.RoundOption = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER",
            help="Leave out the updates of this participant: its name or id; repeat for more.",
            autocompletion=names.complete_users,
        ),
    ] = None,
    model_name: Annotated[
        str,
        typer.Option(help="With --without: the name of the new model; by default, that of the training and of whom."),
    ] = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Compute the versions of a training once more from its stored updates, and compare them with what is recorded.

    Each line is a round that made a version: whether the digest is that which is recorded, or why the round cannot be
    replayed. Exits with 1 if a version differs.

    With --without, compute the models that would have come of the updates of the others, and store them as a new model,
    a side branch with one version for each round. The first round is exact. In those that follow, the others would have
    trained another model, so it is an estimate. DISTANCE says how far a version is from the recorded one (L2). With
    ROUND, compute only what that round would have made of its model, and store nothing.
    """
    wanted = names.round_number(number, option)
    if model_name and (not without or wanted is not None):
        raise typer.BadParameter("--model-name: a new model is made only with --without, and without ROUND")
    with client_of(context) as client:
        training_id = names.training_id(client, training)
        users = names.user_ids(client, without or ())
        found = client.get_training(training_id)
        if users and wanted is None:
            name = model_name or f"{found.spec.name} without {', '.join(without or ())}"[:200]
            rows, model_id = _branch(client, training_id, users, name)
        else:
            numbers = range(found.round + 1) if wanted is None else [wanted]
            rows, model_id = list(_replayed(client, found, numbers, users, one=wanted is not None)), ""
    if form is Format.JSON:
        echo_json({"model_id": model_id, "versions": rows} if model_id else rows)
    else:
        _show(rows)
        if model_id:
            echo(f"\nThese are the versions of the new model {model_id}.")
    if any(row["result"] == "differs" for row in rows):
        raise typer.Exit(DIFFERENT)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    header = ("ROUND", "VERSION", "UPDATES", "RECORDED", "RESULT", "DISTANCE")
    shown = [{**row, "recorded": row.get("recorded_sha256", "")[:DIGITS]} for row in rows]
    titles = [title for title in header if title != "RECORDED" or any(row["recorded"] for row in shown)]
    show_table(titles, ([row.get(title.lower(), "") for title in titles] for row in shown))


def _branch(client: Client, training_id: str, users: list[str], name: str) -> tuple[list[dict[str, Any]], str]:
    rows: list[dict[str, Any]] = []
    model_id = ""
    for one in client.replay_training(training_id, users, name):
        if one.model_id:
            model_id = one.model_id
            continue
        row: dict[str, Any] = {"round": one.round + 1, "version": one.model_version, "updates": one.num_updates}
        row["result"] = f"unchanged: {one.problem}" if one.problem else "exact" if one.exact else "an estimate"
        row["sha256"] = one.sha256
        if one.HasField("distance"):
            row["distance"] = one.distance
        rows.append(row)
    return rows, model_id


def _replayed(
    client: Client, training: Training, numbers: range | list[int], users: list[str], *, one: bool
) -> Iterator[dict[str, Any]]:
    for number in numbers:
        row: dict[str, Any] = {"round": number + 1}
        try:
            found = client.replay_round(training.training_id, number, users)
        except ReplayImpossible as error:
            if one:
                raise
            if error.metadata.get("cause") == "NO_VERSION":
                continue
            row["result"] = f"not replayed: {error.message}"
        else:
            row |= {"version": found.model_version, "updates": found.num_updates}
            row["replayed_sha256"], row["recorded_sha256"] = found.replayed_sha256, found.recorded_sha256
            same = found.replayed_sha256 == found.recorded_sha256
            row["result"] = "computed" if users else "the same" if same else "differs"
            if found.HasField("distance"):
                row["distance"] = found.distance
        yield row
