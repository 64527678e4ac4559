"""Reports: what participants submit in evaluation rounds; and metrics in general."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, TypeGuard

from fedround_server.domain.update import MetricValue, Submission, is_number

MAX_MEANS = 1000
"""How many metrics a round's result has, so that it fits into a message."""
MAX_SPREADS = 100
"""For how many metrics a report has the spread: it is computed when the report is read."""
MAX_LABELS = 100
"""For how many labels a report has means: those that most reporters have."""
MAX_LABEL_MEANS = 500
"""How many means by label a report has, so that it fits into a message."""


@dataclass(frozen=True, slots=True)
class NewReport:
    """A report, to be accepted."""

    submission: ClassVar[Submission] = Submission.REPORT
    training_id: str
    round: int
    user_id: str
    num_examples: int
    metrics: Mapping[str, MetricValue]


@dataclass(frozen=True, slots=True)
class Report:
    """An accepted report."""

    report_id: str
    training_id: str
    round: int
    user_id: str
    num_examples: int
    accept_time: datetime


@dataclass(frozen=True, slots=True)
class LabelMean:
    """The mean of a metric over those whose users have a label, weighted by example count."""

    mean: float
    num_reporters: int


@dataclass(frozen=True, slots=True)
class MetricSpread:
    """How the values of a metric are spread over those that its mean is of, who count alike.

    Attributes:
        by_label: Means by label, as "name=value".
    """

    minimum: float
    median: float
    maximum: float
    num_reporters: int
    by_label: Mapping[str, LabelMean] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricReport:
    """Metrics of a round (of a kind as clients see it) by one reporter, or aggregated (reporter_id is None).

    Attributes:
        num_reporters: Of how many submissions the mean was made; 0 if it is no mean.
        num_participants: How many participants the round had asked; 0 if it is no mean.
        reporter_ids: The first of those of whose submissions the mean was made; for the owner of the model.
        spread: Of a mean, how the values are spread, by metric; for the owner of the model.
    """

    training_id: str
    round: int
    kind: str
    model_version: int
    reporter_id: str | None
    num_examples: int
    metrics: Mapping[str, MetricValue]
    num_reporters: int = 0
    num_participants: int = 0
    reporter_ids: tuple[str, ...] = ()
    spread: Mapping[str, MetricSpread] = field(default_factory=dict)


def weighted_means(reports: list[tuple[Mapping[str, MetricValue], int]]) -> dict[str, float]:
    """Averages metrics, weighted by example count, each over those that reported it; all means are finite.

    NaN and infinity are left out, and so are reports without examples. A metric that nothing else was reported of has
    no mean.

    Texts and lists are left out.

    Args:
        reports: (metrics, num_examples) in canonical order.
    """
    votes: dict[str, list[tuple[float, int]]] = {}
    for metrics, num_examples in reports:
        for name, value in metrics.items():
            if _counts(value, num_examples):
                votes.setdefault(name, []).append((value, num_examples))
    return {name: _mean(votes[name]) for name in sorted(votes)}


def spreads(
    reports: Sequence[tuple[Mapping[str, MetricValue], int, Mapping[str, str]]],
    names: Iterable[str],
    asked: Collection[str],
) -> dict[str, MetricSpread]:
    """Returns how metrics are spread over those that reported them, with at most MAX_LABEL_MEANS means by label.

    Args:
        reports: (metrics, num_examples, labels of the reporter) in canonical order.
        names: Of the metrics, of which MAX_SPREADS have room.
        asked: Those that come first.
    """
    labelled = [{f"{name}={value}" for name, value in labels.items()} for _, _, labels in reports]
    counts = Counter(label for labels in labelled for label in labels)
    groups = sorted(counts, key=lambda label: (-counts[label], label))[:MAX_LABELS]
    found, room = {}, MAX_LABEL_MEANS
    for name in sorted(names, key=lambda name: (name not in asked, name))[:MAX_SPREADS]:
        votes: list[tuple[float, int, set[str]]] = []
        for (metrics, num_examples, _), labels in zip(reports, labelled, strict=True):
            value = metrics.get(name)
            if _counts(value, num_examples):
                votes.append((value, num_examples, labels))
        if votes:
            by_label = _label_means(votes, groups[:room])
            room -= len(by_label)
            values = sorted(value for value, _, _ in votes)
            found[name] = MetricSpread(values[0], _median(values), values[-1], len(values), by_label)
    return found


def _median(values: Sequence[float]) -> float:
    """Returns the median of sorted numbers."""
    middle = len(values) // 2
    # Halved first: the sum of two large numbers overflows.
    return values[middle] if len(values) % 2 else values[middle - 1] / 2 + values[middle] / 2


def _label_means(votes: Sequence[tuple[float, int, set[str]]], groups: Iterable[str]) -> dict[str, LabelMean]:
    """Returns the means over those that have a label, by label."""
    members = {label: [(value, count) for value, count, labels in votes if label in labels] for label in groups}
    return {label: LabelMean(_mean(group), len(group)) for label, group in sorted(members.items()) if group}


def _counts(value: MetricValue | None, num_examples: int) -> TypeGuard[float]:
    """Returns whether a value is part of a mean."""
    return bool(num_examples) and value is not None and is_number(value) and math.isfinite(value)


def _mean(votes: list[tuple[float, int]]) -> float:
    # Shares: a value times its example count may be more than a float holds.
    total = sum(num_examples for _, num_examples in votes)
    mean = sum(value * (num_examples / total) for value, num_examples in votes)
    # Rounding may leave the range of the values, at its end even that of floats.
    values = [value for value, _ in votes]
    return min(max(mean, min(values)), max(values))


def count_not_finite(reports: Iterable[Mapping[str, MetricValue]]) -> dict[str, int]:
    """Returns how many values of each metric are NaN or infinite, by name; at most MAX_MEANS names."""
    counts = Counter(
        name for metrics in reports for name, value in metrics.items() if is_number(value) and not math.isfinite(value)
    )
    return {name: counts[name] for name in sorted(counts)[:MAX_MEANS]}


def same_metrics(some: Mapping[str, MetricValue], others: Mapping[str, MetricValue]) -> bool:
    """Returns whether two reports have the same metrics; NaN is the same as NaN."""
    return some.keys() == others.keys() and all(
        value == others[name] or (value != value and others[name] != others[name]) for name, value in some.items()
    )


def foremost(means: Mapping[str, float], asked: Collection[str]) -> dict[str, float]:
    """Returns the metrics that a result has room for: those that the training asked for, then others by name."""
    names = sorted(means, key=lambda name: (name not in asked, name))[:MAX_MEANS]
    return {name: means[name] for name in sorted(names)}
