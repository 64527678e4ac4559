"""`fedround metrics`: the metrics reported on a model, by round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated

import typer

from fedround.v1.event_pb2 import RoundKind
from fedround.v1.model_pb2 import MetricReport
from fedround_client.command import names
from fedround_client.command.output import (
    Columns,
    Format,
    TableFormat,
    TableFormatOption,
    echo,
    enum_name,
    show_all,
    used,
)
from fedround_client.command.session import client_of
from fedround_client.command.spreadsheet import as_csv

_OVER: Columns[MetricReport] = {
    "OVER": lambda one: f"{one.num_reporters} of {one.num_participants}" if one.num_participants else ""
}


def metrics(
    context: typer.Context,
    model: names.Model,
    by_reporter: Annotated[
        bool, typer.Option("--by-reporter", help="Also print the report of each participant, not only the means.")
    ] = False,
    form: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Print the metrics reported on a model, by round: means weighted by the number of examples.

    OVER says over how many of the participants that the round had asked a mean was made. Texts and lists have no mean:
    --by-reporter shows them. The first round is round 1, except in JSON, which has the API's numbers from 0.
    """
    with client_of(context) as client:
        found = client.metrics(names.model_id(client, model))
        reports = [report for report in found if by_reporter or not report.reporter_id]
        reporters = names.user_names(client) if by_reporter and form is not TableFormat.JSON else None
    columns = _columns(reports, reporters)
    if form is TableFormat.CSV:
        echo(as_csv(reports, columns).removesuffix("\n"))
    else:
        show_all(reports, columns, Format(form.value))


def _columns(reports: Collection[MetricReport], reporters: Mapping[str, str] | None) -> Columns[MetricReport]:
    columns: dict[str, Callable[[MetricReport], object]] = {
        "ROUND": lambda report: report.round + 1,
        "KIND": lambda report: enum_name(RoundKind, report.kind),
        "VERSION": lambda report: report.model_version,
        "EXAMPLES": lambda report: report.num_examples,
    }
    columns |= used(_OVER, reports)
    if reporters is not None:
        columns["REPORTER"] = lambda report: report.reporter_id or "all"
        columns["NAME"] = lambda report: reporters.get(report.reporter_id, "")
    metric_names = {name for one in reports for name in (*one.metrics, *one.text_metrics, *one.list_metrics)}
    # A metric may have the name of a column, and must not replace it.
    titles = {f"{name} (metric)" if name in columns else name: name for name in sorted(metric_names)}
    return columns | {title: partial(_value, name) for title, name in titles.items()}


def _value(name: str, report: MetricReport) -> object:
    if name in report.list_metrics:
        return ", ".join(f"{value:.6g}" for value in report.list_metrics[name].values)
    return report.metrics.get(name, report.text_metrics.get(name, ""))
