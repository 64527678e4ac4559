"""Commands about side branches of a training, and about what each participant contributed to it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from fedround.v1.training_pb2 import Training
from fedround_client.client import Client
from fedround_client.command import names
from fedround_client.command.aggregation import aggregation_text
from fedround_client.command.live import live_messages
from fedround_client.command.metrics import show_reports
from fedround_client.command.output import (
    UINT32,
    Format,
    FormatOption,
    TableFormat,
    TableFormatOption,
    echo_json,
    show_table,
)
from fedround_client.command.session import client_of


def shadows(context: typer.Context, training: names.Training, form: FormatOption = Format.TABLE) -> None:
    """List the shadow aggregations of a training, with the models that they make as side branches."""
    with client_of(context) as client:
        found = client.get_training(names.training_id(client, training))
        rows = [
            {
                "shadow": number,
                "aggregation": aggregation_text(stages),
                "model_id": model_id,
                "version": client.get_model(model_id).version,
            }
            for number, (stages, model_id) in enumerate(
                zip(found.spec.aggregation.shadow, found.shadow_model_ids, strict=True), 1
            )
        ]
    _show(rows, ("SHADOW", "AGGREGATION", "MODEL_ID", "VERSION"), form)


@dataclass
class _Participant:
    """What a participant has contributed."""

    name: str
    rounds: int = 0
    examples: int = 0
    shares: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    distance: float | None = None


def contributions(
    context: typer.Context,
    training: names.Training,
    counterfactual: Annotated[
        bool,
        typer.Option(
            "--counterfactual",
            help="Also replay the training without each of them, one after the other: DISTANCE is how far the last"
            " version would be from the recorded one (L2).",
        ),
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Show what each participant has contributed to the versions of a training.

    ROUNDS is in how many rounds its update counted, SHARE its mean part of the aggregates, and COSINE the mean cosine
    of the angle between its update's difference from the model and that of the aggregate, where the rule has computed
    them.
    """
    with client_of(context) as client:
        found = client.get_training(names.training_id(client, training))
        participants = _participants(client, found)
        if counterfactual:
            for user_id, one in participants.items():
                for version in client.replay_training(found.training_id, [user_id]):
                    one.distance = version.distance if version.HasField("distance") else None
    rows = [
        {
            "participant": one.name,
            "user_id": user_id,
            "rounds": one.rounds,
            "examples": one.examples,
            **({"share": _mean(one.shares)} if one.shares else {}),
            **({"cosine": _mean(one.cosines)} if one.cosines else {}),
            **({} if one.distance is None else {"distance": one.distance}),
        }
        for user_id, one in sorted(participants.items(), key=lambda item: item[1].name)
    ]
    header = ("PARTICIPANT", "USER_ID", "ROUNDS", "EXAMPLES", "SHARE", "COSINE", "DISTANCE")
    _show(rows, tuple(title for title in header if title != "DISTANCE" or counterfactual), form)


def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(help="The model: its name, or its id.", autocompletion=names.complete_models),
    ],
    client: Annotated[
        list[str],
        typer.Option(
            help="Name or id of a user who evaluates it; repeat for more.", autocompletion=names.complete_users
        ),
    ],
    metric: Annotated[list[str], typer.Option(help="Metric that is reported; repeat for more.")],
    model_version: Annotated[
        int | None, typer.Option(min=0, max=UINT32, help="The version; the latest by default.")
    ] = None,
    name: Annotated[str, typer.Option(help="A name for people; by default that of the model.")] = "",
    min_updates: Annotated[
        int, typer.Option(min=0, max=UINT32, help="Number of reports that is enough; 0 for all participants.")
    ] = 0,
    deadline: Annotated[float | None, typer.Option(help="Seconds to wait for reports; no limit by default.")] = None,
    form: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Have participants evaluate a stored model, such as a side branch, and print their metrics.

    This creates and starts a training that makes no updates, and waits for its evaluation round. Its model is the
    stored one, or a copy of the version if that has been trained.
    """
    with client_of(context) as connection:
        model_id = names.model_id(connection, model)
        created = connection.create_training(
            name=name or f"evaluation of {connection.get_model(model_id).name}"[:200],
            target_num_updates=0,
            model_id=model_id,
            model_version=model_version,
            metric_names=metric,
            client_ids=names.user_ids(connection, client),
            min_updates=min_updates,
            deadline=deadline,
        )
        connection.start_training(created.training_id)
        with live_messages("waiting for the reports") if form is TableFormat.TABLE else nullcontext():
            ended = connection.wait(created.training_id)
        reports = [report for report in connection.metrics(ended.model_id) if not report.reporter_id]
    show_reports(reports, form)


def _participants(client: Client, training: Training) -> dict[str, _Participant]:
    found: dict[str, _Participant] = {}
    for version in range(1, training.model_version + 1):
        origin, updates = client.contributions(training.model_id, version)
        for update in updates:
            one = found.setdefault(update.user_id, _Participant(update.user_name))
            one.rounds += 1
            one.examples += update.num_examples
        for member in client.round_participants(training.training_id, origin.round):
            if member.user_id in found and member.report.HasField("share"):
                found[member.user_id].shares.append(member.report.share)
            if member.user_id in found and member.report.HasField("cosine"):
                found[member.user_id].cosines.append(member.report.cosine)
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _show(rows: list[dict[str, Any]], header: tuple[str, ...], form: Format) -> None:
    if form is Format.JSON:
        echo_json(rows)
        return
    show_table(header, ([_cell(row.get(title.lower(), "")) for title in header] for row in rows))


def _cell(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
