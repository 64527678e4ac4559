"""`fedround training wait`: the exit code says how a training ended."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from fedround_client.command import names
from fedround_client.command.live import live_messages
from fedround_client.command.output import Format, FormatOption
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import show_training
from fedround_client.exit_codes import code_of_training


def wait(
    context: typer.Context,
    training: names.Training,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Wait until a training ends, say whom it waits for, and print it.

    Exits with 0 when it is completed, 4 if it failed, 5 if its actor stopped it, 6 if its privacy budget ended it, 7 if
    it was removed, 8 after --timeout, 1 after another error, and 130 after Ctrl-C.
    """
    with client_of(context) as client:
        training_id = names.training_id(client, training)
        # Programs that ask for JSON often read both streams as one.
        with live_messages("waiting for the training") if form is Format.TABLE else nullcontext():
            ended = client.wait(training_id, timeout)
    show_training(ended, form)
    raise typer.Exit(code_of_training(ended))
