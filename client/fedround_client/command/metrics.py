"""`fedround metrics`: the metrics reported on a model, by round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import typer

from fedround.v1.event_pb2 import RoundKind
from fedround.v1.model_pb2 import MetricReport, MetricSpread
from fedround_client.client import Client
from fedround_client.command import names
from fedround_client.command.output import (
    Columns,
    Format,
    TableFormat,
    TableFormatOption,
    cells,
    echo,
    enum_name,
    show_all,
    show_table,
    used,
)
from fedround_client.command.session import client_of
from fedround_client.command.spreadsheet import as_csv

_OVER: Columns[MetricReport] = {
    "OVER": lambda one: f"{one.num_reporters} of {one.num_participants}" if one.num_participants else ""
}


class _SpreadRow(NamedTuple):
    """A metric of a round: over all participants, or over those with a label."""

    report: MetricReport
    metric: str
    label: str
    mean: float
    num_reporters: int
    spread: MetricSpread | None = None


_SPREAD: Columns[_SpreadRow] = {
    "ROUND": lambda row: row.report.round + 1,
    "KIND": lambda row: enum_name(RoundKind, row.report.kind),
    "VERSION": lambda row: row.report.model_version,
    "METRIC": lambda row: row.metric,
    "LABEL": lambda row: row.label,
    "PARTICIPANTS": lambda row: row.num_reporters,
    "MEAN": lambda row: row.mean,
    "MIN": lambda row: "" if row.spread is None else row.spread.min,
    "MEDIAN": lambda row: "" if row.spread is None else row.spread.median,
    "MAX": lambda row: "" if row.spread is None else row.spread.max,
}


def metrics(
    context: typer.Context,
    model: names.Model,
    by_reporter: Annotated[
        bool, typer.Option("--by-reporter", help="Also print the report of each participant, not only the means.")
    ] = False,
    spread: Annotated[
        bool, typer.Option("--spread", help="Print how the values of each metric are spread over the participants.")
    ] = False,
    form: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Print the metrics reported on a model, by round: means weighted by the number of examples.

    OVER says over how many of the participants that the round had asked a mean was made. Texts and lists have no mean:
    --by-reporter shows them. --spread prints a line for each metric with its mean, and with the smallest, the median
    and the largest value of the participants; and one for each label of theirs with the mean over those that have it.
    The first round is round 1, except in JSON, which has the API's numbers from 0.
    """
    with client_of(context) as client:
        found = client.metrics(names.model_id(client, model))
        if spread and form is not TableFormat.JSON:
            _show_spreads(list(_spreads(one for one in found if not one.reporter_id)), form)
            return
        reports = [report for report in found if by_reporter or not report.reporter_id]
        reporters = _reporters(client, reports) if by_reporter and form is not TableFormat.JSON else None
    show_reports(reports, form, reporters)


def _reporters(client: Client, reports: Collection[MetricReport]) -> dict[str, str]:
    ids = {report.reporter_id for report in reports} - {""}
    return names.participant_names(client, next(report.training_id for report in reports), ids) if ids else {}


def show_reports(
    reports: Collection[MetricReport], form: TableFormat, reporters: Mapping[str, str] | None = None
) -> None:
    """Prints metrics, with the reporters if their names are given by id."""
    columns = _columns(reports, reporters)
    if form is TableFormat.CSV:
        echo(as_csv(reports, columns).removesuffix("\n"))
    else:
        show_all(reports, columns, Format(form.value))


def _show_spreads(rows: Sequence[_SpreadRow], form: TableFormat) -> None:
    if form is TableFormat.CSV:
        echo(as_csv(rows, _SPREAD).removesuffix("\n"))
    else:
        show_table(_SPREAD, [cells(row, _SPREAD) for row in rows])


def _spreads(means: Iterable[MetricReport]) -> Iterator[_SpreadRow]:
    """Yields the rows of the metrics of some means: of all participants, then by label."""
    for report in means:
        for name, found in sorted(report.spread.items()):
            yield _SpreadRow(report, name, "", report.metrics.get(name, 0.0), found.num_reporters, found)
            for label, group in sorted(found.by_label.items()):
                yield _SpreadRow(report, name, label, group.mean, group.num_reporters)


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
