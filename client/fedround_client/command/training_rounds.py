"""`fedround training rounds`: the rounds of a training."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from fedround.v1.event_pb2 import RoundKind
from fedround.v1.round_pb2 import Round, RoundState
from fedround_client.command import names
from fedround_client.command.output import Columns, Format, FormatOption, enum_name, show_all, used, when
from fedround_client.command.session import client_of

_COLUMNS: Columns[Round] = {
    "ROUND": lambda found: found.number + 1,
    "KIND": lambda found: enum_name(RoundKind, found.kind),
    "STATE": lambda found: enum_name(RoundState, found.state),
    "VERSION": lambda found: found.model_version,
    "UPDATES": lambda found: f"{found.updates_arrived}/{found.updates_expected}",
}
_FAILED: Columns[Round] = {"FAILED": lambda found: found.num_failed or ""}
_TIMES: Columns[Round] = {
    "OPENED": lambda found: when(found.open_time),
    "SECONDS": lambda found: _seconds(found),
}


def rounds(
    context: typer.Context,
    training: names.Training,
    limit: Annotated[int | None, typer.Option(min=1, help="How many at most; all by default.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the rounds of a training, the latest first.

    VERSION is the model's version that a round started from, SECONDS how long it took from its opening to its result.
    The first round is round 1, except in JSON, which has the API's numbers from 0.
    """
    with client_of(context) as client:
        found = list(islice(client.rounds(names.training_id(client, training)), limit))
    show_all(found, {**_COLUMNS, **used(_FAILED, found), **_TIMES}, form)


def _seconds(found: Round) -> str:
    if not found.HasField("done_time") or not found.HasField("open_time"):
        return ""
    return f"{(found.done_time.ToNanoseconds() - found.open_time.ToNanoseconds()) / 1e9:.1f}"
