"""The data of charts: metrics by version, durations of rounds, and what aggregations found out about updates."""

from __future__ import annotations

import math
import statistics
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_TRAIN
from fedround.v1.model_pb2 import MetricReport
from fedround.v1.round_pb2 import ROUND_STATE_DONE, Round, UpdateReport
from fedround.v1.training_pb2 import Training
from fedround_client.dashboard.reader import Reader
from fedround_client.dashboard.words import has_figure, seconds_between
from fedround_client.errors import FedroundError, Unauthenticated
from fedround_client.rpc import PAGE_SIZE

MAX_METRICS = 8
"""Metrics of one kind that have a chart; the training's own come first."""
MAX_REPORTS = 20_000
"""Reports of participants that are read to draw the metrics of updates: the server has no list of the means alone."""
MAX_REPORT_ROUNDS = 30
"""Rounds whose updates are compared."""
MAX_REPORT_PARTICIPANTS = PAGE_SIZE
MAX_REMEMBERED = 5000
MAX_TRAININGS = 100
"""Trainings whose charts are kept."""

Spread = tuple[float, float, float]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: Its id in the page.
        title: Its title.
        subtitle: What its values are, and by what.
        x_label: What the horizontal axis counts.
        unit: The unit of the values; empty for none.
        x: The values on the horizontal axis, ascending.
        series: The curves by name, each with one value, or None, for each x.
    """

    name: str
    title: str
    subtitle: str
    x_label: str
    x: Sequence[int]
    series: Mapping[str, Sequence[float | None]]
    unit: str = ""


class ReportMemory:
    """What aggregations found out about the updates of rounds that are done, which does not change. Thread-safe."""

    def __init__(self) -> None:
        """Creates an empty memory."""
        self._known: OrderedDict[tuple[str, int], Mapping[str, Spread]] = OrderedDict()
        self._lock = threading.Lock()

    def spreads(self, reader: Reader, training_id: str, number: int) -> Mapping[str, Spread]:
        """Returns the smallest value, the median and the largest value of each figure about a round's updates."""
        key = (training_id, number)
        with self._lock:
            if key in self._known:
                return self._known[key]
        reports = [one.report for one in reader.round_participants(training_id, number) if one.HasField("report")]
        found = {name: spread for name in ("share", "norm", "cosine") if (spread := _spread(name, reports))}
        with self._lock:
            self._known[key] = found
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        return found


class ChartMemory:
    """The charts of trainings until they change, for all pages of an account. Thread-safe."""

    def __init__(self) -> None:
        """Creates an empty memory."""
        self._reports = ReportMemory()
        self._known: OrderedDict[tuple[str, str], tuple[Hashable, list[dict[str, Any]]]] = OrderedDict()
        self._lock = threading.Lock()

    def charts(self, reader: Reader, training: Training) -> list[dict[str, Any]]:
        """Returns the charts of a training as it is now."""
        key = (reader.account.account_id, training.training_id)
        stamp = (training.model_version, training.round, training.round_closed, training.state)
        with self._lock:
            known = self._known.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        charts = _charts_of(reader, training, self._reports)
        with self._lock:
            self._known[key] = (stamp, charts)
            self._known.move_to_end(key)
            if len(self._known) > MAX_TRAININGS:
                self._known.popitem(last=False)
        return charts


def _charts_of(reader: Reader, training: Training, memory: ReportMemory) -> list[dict[str, Any]]:
    """Returns the charts of a training that have values, as JSON objects. What the visitor may not see is left out."""
    makers = (
        partial(_version_metrics, reader, training),
        partial(_update_metrics, reader, training),
        partial(_round_charts, reader, training, memory),
    )
    charts: list[Chart] = []
    for make in makers:
        try:
            charts += make()
        except Unauthenticated:
            raise
        except FedroundError:
            continue
    return [asdict(chart) for chart in charts if len(chart.x) and chart.series]


def _version_metrics(reader: Reader, training: Training) -> list[Chart]:
    versions = reader.versions(training.model_id, page_size=PAGE_SIZE).versions
    rows = {version.version: version.metrics for version in reversed(versions)}
    return _metrics_charts("evaluation", "version", rows, training.spec.metric_names)


def _update_metrics(reader: Reader, training: Training) -> list[Chart]:
    """Returns the means of the metrics that participants sent with their updates."""
    if training.num_participants * (training.round + 1) > MAX_REPORTS:
        return []
    rows: dict[int, Mapping[str, float]] = {}
    for report in _reports(reader, training):
        if not report.reporter_id and report.kind != ROUND_KIND_EVALUATE and report.training_id == training.training_id:
            rows[report.round + 1] = report.metrics
    return _metrics_charts("sent with updates", "round", rows, ())


def _reports(reader: Reader, training: Training) -> Iterable[MetricReport]:
    page = reader.metrics(training.model_id)
    yield from page.reports
    while page.next_page_token:
        page = reader.metrics(training.model_id, page.next_page_token)
        yield from page.reports


def _metrics_charts(
    source: str, x_label: str, rows: Mapping[int, Mapping[str, float]], preferred: Sequence[str]
) -> list[Chart]:
    """Returns a chart for each metric: their values are rarely of the same size."""
    known = {metric for row in rows.values() for metric in row}
    names = [metric for metric in preferred if metric in known]
    names += sorted(known - set(names))
    charts = []
    for metric in names[:MAX_METRICS]:
        values = {number: _finite(row[metric]) for number, row in rows.items() if metric in row}
        subtitle = f"{source}, by {x_label}"
        charts.append(
            Chart(f"{source} {metric}", metric, subtitle, x_label, list(values), {metric: list(values.values())})
        )
    return charts


def _round_charts(reader: Reader, training: Training, memory: ReportMemory) -> list[Chart]:
    rounds = list(reader.rounds(training.training_id, page_size=PAGE_SIZE).rounds)
    done = [one for one in reversed(rounds) if one.state == ROUND_STATE_DONE]
    charts = _report_charts(reader, [one for one in done if one.kind == ROUND_KIND_TRAIN], memory)
    return [*charts, _durations(done)]


def _durations(done: Sequence[Round]) -> Chart:
    seconds = {one.number + 1: (one.kind, seconds_between(one.open_time, one.done_time)) for one in done}
    series: dict[str, Sequence[float | None]] = {}
    for title, is_evaluation in (("training", False), ("evaluation", True)):
        values = [value if (kind == ROUND_KIND_EVALUATE) == is_evaluation else None for kind, value in seconds.values()]
        if any(value is not None for value in values):
            series[title] = values
    return Chart("durations", "Duration", "of rounds", "round", list(seconds), series, "s")


def _report_charts(reader: Reader, done: Sequence[Round], memory: ReportMemory) -> list[Chart]:
    newest = [one for one in done[-MAX_REPORT_ROUNDS:] if one.num_participants <= MAX_REPORT_PARTICIPANTS]
    found = {one.number + 1: memory.spreads(reader, one.training_id, one.number) for one in newest}
    titles = {"norm": "Norm", "share": "Share", "cosine": "Cosine"}
    charts = []
    for name, title in titles.items():
        rows = {number: spreads[name] for number, spreads in found.items() if name in spreads}
        series = {
            label: [row[position] for row in rows.values()]
            for position, label in ((2, "largest"), (1, "median"), (0, "smallest"))
        }
        charts.append(Chart(name, title, "of updates, by round", "round", list(rows), series if rows else {}))
    return charts


def _spread(name: str, reports: Sequence[UpdateReport]) -> Spread | None:
    values = [value for one in reports if has_figure(one, name) and math.isfinite(value := getattr(one, name))]
    return (min(values), statistics.median(values), max(values)) if values else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
