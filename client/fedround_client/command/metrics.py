"""`fedround metrics`: the metrics reported on a model, by round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated

import typer

from fedround.v1.event_pb2 import RoundKind
from fedround.v1.model_pb2 import MetricReport
from fedround_client.command.output import Columns, Format, TableFormat, TableFormatOption, as_csv, show_all, state_name
from fedround_client.command.session import client_of


def metrics(
    context: typer.Context,
    model_id: Annotated[str, typer.Argument(metavar="MODEL_ID", help="UUID of the model.")],
    by_reporter: Annotated[
        bool, typer.Option("--by-reporter", help="Also print the report of each participant, not only the means.")
    ] = False,
    form: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Print the metrics reported on a model, by round: means weighted by the number of examples."""
    with client_of(context) as client:
        reports = [report for report in client.metrics(model_id) if by_reporter or not report.reporter_id]
    columns = _columns(reports, by_reporter=by_reporter)
    if form is TableFormat.CSV:
        typer.echo(as_csv(reports, columns), nl=False)
    else:
        show_all(reports, columns, Format(form.value))


def _columns(reports: Iterable[MetricReport], *, by_reporter: bool) -> Columns[MetricReport]:
    columns: dict[str, Callable[[MetricReport], object]] = {
        "ROUND": lambda report: report.round,
        "KIND": lambda report: state_name(RoundKind.Name(report.kind)),
        "VERSION": lambda report: report.model_version,
        "EXAMPLES": lambda report: report.num_examples,
    }
    if by_reporter:
        columns["REPORTER"] = lambda report: report.reporter_id or "all"
    names = sorted({name for report in reports for name in report.metrics})
    return columns | {name: partial(_value, name) for name in names}


def _value(name: str, report: MetricReport) -> object:
    return report.metrics.get(name, "")
