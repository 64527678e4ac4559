"""Reads of the metrics that were reported on models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedround_server.domain.report import MetricReport, spreads
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.update import MetricValue, Submission
from fedround_server.store.queries.round import SUBMITTED, counted
from fedround_server.store.queries.training import find_training_of_model
from fedround_server.store.tables.schema import CohortRow, ModelRow, RoundRow, TrainingRow, UpdateRow, UserRow

REPORTERS = 100
"""How many reporters of a mean are named."""


def shown_metrics(model: ModelRow, user_id: str) -> Callable[[Mapping[str, float]], dict[str, float]]:
    """Returns what picks those of a round's means that a user may see.

    The owner sees all. To participants the mean of what one of them reported alone would tell that one's own value:
    they see what the training asked for.
    """
    if model.owner_id == user_id:
        return dict
    training = find_training_of_model(model.model_id)
    asked = frozenset(() if training is None else training.spec["metric_names"])
    return lambda means: {name: value for name, value in means.items() if name in asked}


def version_metrics(model_id: str, versions: Sequence[int]) -> dict[int, Mapping[str, float]]:
    """Returns the aggregated metrics of evaluated versions of a model, by version."""
    reporting = [kind.name for kind in KINDS.values() if kind.submission is Submission.REPORT]
    rounds = (
        RoundRow.select(RoundRow.model_version, RoundRow.metrics)
        .join(TrainingRow, on=(TrainingRow.training_id == RoundRow.training_id))
        .where(
            TrainingRow.model_id == model_id,
            RoundRow.kind.in_(reporting),
            RoundRow.model_version.in_(versions),
            RoundRow.metrics.is_null(False),
        )
    )
    return {row.model_version: row.metrics for row in rounds}


def page_reports(model: ModelRow, user_id: str, after: tuple[int, str], limit: int) -> list[MetricReport]:
    """Returns the metrics on a model that a user may see, as `ModelVerbs.metrics` describes."""
    training = find_training_of_model(model.model_id)
    if training is None:
        return []
    shown = shown_metrics(model, user_id)
    number, reporter = after
    done = (RoundRow.training_id == training.training_id) & RoundRow.metrics.is_null(False)
    rows = RoundRow.select().where(done, RoundRow.number >= number).order_by(RoundRow.number)
    # Each of them has an aggregated report, so together they have all that the page needs.
    rounds = {row.number: row for row in rows.limit(limit + 1)}
    updates = UpdateRow.select().where(
        UpdateRow.training_id == training.training_id,
        UpdateRow.number.in_(list(rounds)),
        UpdateRow.metrics != {},
        (UpdateRow.number > number) | ((UpdateRow.number == number) & (UpdateRow.user_id > reporter)),
    )
    if model.owner_id != user_id:
        updates = updates.where(UpdateRow.user_id == user_id)
    done_rounds = [row for row in rounds.values() if row.number > number]
    reports = [
        replace(
            _report(row, None, row.num_examples, shown(row.metrics)),
            num_reporters=row.arrived,
            num_participants=row.members,
        )
        for row in done_rounds
    ]
    reports += [
        _report(rounds[update.number], update.user_id, update.num_examples, update.metrics)
        for update in updates.order_by(UpdateRow.number, UpdateRow.user_id).limit(limit)
    ]
    # Sorting keeps the order within a round.
    page = sorted(reports, key=lambda report: report.round)[:limit]
    if model.owner_id != user_id:
        return page
    means = {one.round: one for one in page if one.reporter_id is None}
    reporters = _reporters(training.training_id, {number: one.num_reporters for number, one in means.items()})
    asked = training.spec["metric_names"]
    return [
        replace(
            one,
            reporter_ids=reporters[one.round],
            spread=spreads(_labelled(training.training_id, one.round), one.metrics, asked) if one.metrics else {},
        )
        if one.reporter_id is None
        else one
        for one in page
    ]


def _labelled(training_id: str, number: int) -> list[tuple[Mapping[str, MetricValue], int, Mapping[str, str]]]:
    """Returns the submissions of a round that count: metrics, num_examples, and the labels of the user."""
    rows: Iterable[tuple[Any, ...]] = (
        counted(training_id, number, UpdateRow.metrics, UpdateRow.num_examples, UserRow.labels)
        .join(UserRow, on=(UserRow.user_id == UpdateRow.user_id))
        .order_by(UpdateRow.user_id)
        .tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    return list(rows)


def _reporters(training_id: str, counts: Mapping[int, int]) -> dict[int, tuple[str, ...]]:
    """Returns by round the first REPORTERS of those whose submissions counted.

    Args:
        training_id: The training.
        counts: How many submissions counted, by round.
    """
    few = [number for number, count in counts.items() if count <= REPORTERS]
    found: dict[int, list[str]] = {number: [] for number in counts}
    # A round with more has a query of its own, so that those who are not named are not read.
    for numbers in filter(None, [few, *([number] for number in counts.keys() - few)]):
        rows = (
            UpdateRow.select(UpdateRow.number, UpdateRow.user_id)
            .join(CohortRow, on=SUBMITTED)
            .where(UpdateRow.training_id == training_id, UpdateRow.number.in_(numbers), ~CohortRow.removed)
            .order_by(UpdateRow.number, UpdateRow.user_id)
            .limit(REPORTERS * len(numbers))
        )
        for row in rows:
            found[row.number].append(row.user_id)
    return {number: tuple(user_ids) for number, user_ids in found.items()}


def _report(
    row: RoundRow, reporter_id: str | None, num_examples: int, metrics: Mapping[str, MetricValue]
) -> MetricReport:
    return MetricReport(
        training_id=row.training_id,
        round=row.number,
        kind=KINDS[row.kind].public_name,
        model_version=row.model_version,
        reporter_id=reporter_id,
        num_examples=num_examples,
        metrics=metrics,
    )
