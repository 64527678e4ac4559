"""Counterfactuals: the models that would have come of the updates of a training without some of its participants."""

from dataclasses import dataclass

from fedround_server.domain.aggregation import NO_STATE, AggregationState
from fedround_server.domain.model import VersionFile


@dataclass(frozen=True, slots=True)
class ReplayableTraining:
    """A training whose rounds can be computed once more.

    Attributes:
        rounds: The numbers of the rounds that made its versions, in order.
        user_ids: Whose updates counted in them.
        file: The file of version 0 of its model.
        state: What that has for the first aggregation.
    """

    rounds: tuple[int, ...]
    user_ids: frozenset[str]
    file: VersionFile
    state: AggregationState = NO_STATE


@dataclass(frozen=True, slots=True)
class BranchVersion:
    """A version of a side branch, and how it was made.

    Attributes:
        round: The round whose updates made it.
        file: Its file.
        state: What its aggregation leaves for the next one.
        num_updates: How many updates were aggregated.
        num_examples: Their examples.
        is_exact: Whether the branch's model was the one that the round started from.
        problem: Why the updates had no aggregate, so that it is a copy of the version before; empty if they had one.
    """

    round: int
    file: VersionFile
    state: AggregationState
    num_updates: int
    num_examples: int
    is_exact: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A side branch to store.

    Attributes:
        training_id: Whose updates made it.
        without: The users whose updates were left out.
        name: Name of the model.
        versions: Its versions from 1 on.
        request_id: The request that makes it; a repeated one makes no other.
    """

    training_id: str
    without: tuple[str, ...]
    name: str
    versions: tuple[BranchVersion, ...]
    request_id: str | None = None
