"""Shadow aggregations: other aggregations of the updates of a training, each with a model of its own, a side branch."""

from dataclasses import dataclass

from fedround_server.domain.aggregation import NO_STATE, Aggregation, AggregationState
from fedround_server.domain.model import VersionFile

MAX_SHADOWS = 8


@dataclass(frozen=True, slots=True)
class ShadowTask:
    """A shadow aggregation of a closed round.

    Attributes:
        model_id: The model that it makes a version of.
        aggregation: How.
        state: What the aggregation that made the latest version of that model has left for this one.
    """

    model_id: str
    aggregation: Aggregation
    state: AggregationState = NO_STATE


@dataclass(frozen=True, slots=True)
class ShadowResult:
    """What a shadow aggregation has made of a round.

    Attributes:
        model_id: The model that this is the next version of.
        file: The file; that of the round's model if there is no aggregate.
        state: What it leaves for the next one; that of the version before if there is no aggregate.
        problem: Why there is no aggregate; empty if there is one.
    """

    model_id: str
    file: VersionFile
    state: AggregationState = NO_STATE
    problem: str = ""
