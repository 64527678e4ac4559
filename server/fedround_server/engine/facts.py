"""What an aggregation has found out about each update."""

from collections.abc import Sequence
from math import isfinite, sqrt

import numpy as np

from fedround_server.aggregators.rule import BaseRule, Updates
from fedround_server.domain.aggregation import Rule, UpdateFacts
from fedround_server.engine.decision import Columns, Decision, Matrix
from fedround_server.engine.private import Private


def facts_of(
    rule: Rule, num_updates: int, counted: Sequence[int], decision: Decision | Private | None, known: Updates
) -> tuple[UpdateFacts, ...]:
    """Returns the facts about each update of a job; nothing is computed for them alone.

    Args:
        rule: The rule.
        num_updates: Updates of the job.
        counted: The indices of those that took part.
        decision: How they were aggregated; None if none took part.
        known: What was known of those that took part.
    """
    selects = isinstance(rule, BaseRule) and rule.selects
    facts = [UpdateFacts(share=0.0, selected=False if selects else None)] * num_updates
    if decision is None:
        return tuple(facts)
    shares = _shares(decision)
    norms = [sqrt(square) for square in known.products.diagonal().tolist()]
    measured = any(norms)
    cosines = _cosines(known.products, shares, norms) if measured and shares is not None else None
    ranks = _ranks(known) if measured else None
    selected = _selected(decision, shares, len(counted)) if selects else None
    for place, index in enumerate(counted):
        facts[index] = UpdateFacts(
            share=None if shares is None else _finite(shares[place]),
            norm=_finite(norms[place]) if measured else None,
            cosine=None if cosines is None else cosines[place],
            distance_rank=None if ranks is None else ranks[place],
            scale=None if decision.scales is None else _finite(decision.scales[place]),
            selected=None if selected is None else selected[place],
        )
    return tuple(facts)


def _finite(value: float) -> float | None:
    """Returns a number, unless it overflowed: products of large differences do."""
    return value if isfinite(value) else None


def _selected(decision: Decision | Private, shares: Sequence[float] | None, count: int) -> list[bool] | None:
    """Returns whether each update was selected; None if mixed ones were, whose parts have different owners."""
    if shares is not None:
        return [share != 0 for share in shares]
    if not isinstance(decision, Columns) or decision.mixed is not None:
        return None
    return [index in decision.chosen for index in range(count)]


def _shares(decision: Decision | Private) -> list[float] | None:
    if isinstance(decision, Columns):
        return None
    return [one / decision.shares.divisor for one in decision.shares.coefficients]


def _cosines(products: Matrix, shares: Sequence[float], norms: Sequence[float]) -> list[float | None]:
    """Returns the cosines of the angles to the aggregate; None where one of the two is zero."""
    aggregate = np.array(shares)
    length = sqrt(max(0.0, float(aggregate @ products @ aggregate)))
    along = (products @ aggregate).tolist()
    cosines = [one / (norm * length) if norm * length else None for one, norm in zip(along, norms, strict=True)]
    # Rounding errors may leave the range of cosines.
    return [max(-1.0, min(1.0, one)) if one is not None and isfinite(one) else None for one in cosines]


def _ranks(known: Updates) -> list[int]:
    sums = known.distances().sum(axis=1).tolist()
    order = sorted(range(len(sums)), key=sums.__getitem__)
    return [order.index(index) + 1 for index in range(len(sums))]
