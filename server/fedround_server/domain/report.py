"""Reports: what participants submit in evaluation rounds; and metrics in general."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from fedround_server.domain.update import MetricValue, Submission, is_number

MAX_MEANS = 1000
"""How many metrics a round's result has, so that it fits into a message."""


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
class MetricReport:
    """Metrics of a round (of a kind as clients see it) by one reporter, or aggregated (reporter_id is None).

    Attributes:
        num_reporters: Of how many submissions the mean was made; 0 if it is no mean.
        num_participants: How many participants the round had asked; 0 if it is no mean.
        reporter_ids: The first of those of whose submissions the mean was made; for the owner of the model.
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
            if num_examples and is_number(value) and math.isfinite(value):
                votes.setdefault(name, []).append((value, num_examples))
    return {name: _mean(votes[name]) for name in sorted(votes)}


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
