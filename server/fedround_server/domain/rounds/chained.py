"""Rounds of daisy chaining: local models change hands several times before they are averaged.

FedDC (Kamp et al., Federated Learning from Small Datasets, ICLR 2023).
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial

from fedround_server.domain.aggregation import DaisyChaining
from fedround_server.domain.model import Manifest
from fedround_server.domain.rounds.kind import (
    Assignment,
    Computation,
    ExpectedTensors,
    NewVersion,
    RoundKind,
    RoundRequest,
    Sequel,
)
from fedround_server.domain.training import TrainingSpec


class Chained(RoundKind):
    """A round of daisy chaining; clients see a round of training."""

    name = "CHAINED"
    public_name = "TRAIN"
    sequel = Sequel.NEXT_VERSION

    def is_due(self, spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
        """Returns whether another version is to be made by daisy chaining."""
        return not last and isinstance(spec.aggregation.rule, DaisyChaining)

    def request(self, spec: TrainingSpec, step: int) -> RoundRequest:
        """Returns the local rounds, and whether models were assigned."""
        return RoundRequest(local_rounds=_rule(spec).daisy_period, assigned=step > 0)

    def tensors(self, spec: TrainingSpec, model: Manifest) -> ExpectedTensors:
        """Returns the model's tensors: local models go on as they are, so they come in full precision."""
        return ExpectedTensors(model)

    def computation(self, spec: TrainingSpec, step: int) -> Computation | None:
        """Returns the average at the end of the chain, and None before."""
        rule = _rule(spec)
        if not averages(rule, step):
            return None
        return Computation(
            spec.aggregation,
            integers=spec.integer_tensors,
            keep_non_finite=spec.allow_non_finite_buffers,
        )

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> NewVersion | Assignment:
        """Returns the next version at the end of the chain, and an assignment of the local models before."""
        rule = _rule(spec)
        return NewVersion() if averages(rule, step) else Assignment(partial(assign, rule, number))


def averages(rule: DaisyChaining, step: int) -> bool:
    """Returns whether the updates of a step of the chain, from 0, are averaged; if not, they are assigned."""
    return (step + 1) * rule.daisy_period >= rule.aggregation_period


def assign(rule: DaisyChaining, number: int, user_ids: Sequence[str]) -> Mapping[str, str]:
    """Assigns to each participant the model of another one; a single one keeps its own.

    A uniformly drawn derangement: permutations are drawn until one has no fixed point, which takes e tries on average.

    Args:
        rule: The options of daisy chaining, with the seed.
        number: The round that is done; each has a draw of its own.
        user_ids: Whose updates counted, in canonical order.

    Returns:
        For each participant, whose model it goes on with.
    """
    # Unlike most other seeds, a string is hashed in the same way by every Python.
    draw = random.Random(f"{rule.seed} {number}")  # noqa: S311 - reproducible, not secret
    sources = list(user_ids)
    while len(sources) > 1:
        draw.shuffle(sources)
        if all(source != user_id for source, user_id in zip(sources, user_ids, strict=True)):
            break
    return dict(zip(user_ids, sources, strict=True))


def _rule(spec: TrainingSpec) -> DaisyChaining:
    rule = spec.aggregation.rule
    if not isinstance(rule, DaisyChaining):
        raise TypeError(f"a round of daisy chaining in a training with {rule.name}")
    return rule
