"""`fedround track`: the course of a training into MLflow, TensorBoard or a file."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from typing import Annotated

import typer

from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_client.command import names
from fedround_client.command.live import live_messages
from fedround_client.command.output import Format, FormatOption
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import show_training
from fedround_client.exit_codes import ExitCode, code_of_training


class TrackerChoice(StrEnum):
    """Where rounds are written."""

    CSV = "csv"
    JSONL = "jsonl"
    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"


def track(
    context: typer.Context,
    training: names.Training,
    to: Annotated[TrackerChoice, typer.Option("--to", help="What is written.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "--uri",
            help="A file for csv and jsonl, by default with the training's name; a folder for tensorboard, by default"
            " runs; a tracking URI or a folder for mlflow, by default the one that MLflow is configured for.",
        ),
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for further rounds, or end after those that are done.")
    ] = True,
    form: FormatOption = Format.TABLE,
) -> None:
    """Write metrics, numbers of updates and durations of a training to MLflow, TensorBoard or a file, by version.

    It begins with the first round, and goes on where it was if it is started again. For actors and viewers. Exits like
    `fedround training wait` when the training ends, and with 0 if it goes on behind --no-follow.
    """
    with client_of(context) as client:
        training_id = names.training_id(client, training)
        with live_messages("tracking the training") if form is Format.TABLE else nullcontext():
            tracked = client.track(training_id, to.value, output, follow=follow)
    show_training(tracked, form)
    raise typer.Exit(code_of_training(tracked) if tracked.state == TRAINING_STATE_COMPLETED else ExitCode.DONE)
