"""Trainings: what an actor asked for, and where it is in its life."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fedround_server.domain.model import Dtype

MAX_NUM_EXAMPLES = 2**31
MAX_TARGET_NUM_UPDATES = 1_000_000
MISSING = "; missing: "


class TrainingState(enum.Enum):
    """Where a training is in its life."""

    INITIAL = "INITIAL"
    ONGOING = "ONGOING"
    SWAG_ROUND = "SWAG_ROUND"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"

    @property
    def is_running(self) -> bool:
        """Whether rounds are under way."""
        return self in (TrainingState.ONGOING, TrainingState.SWAG_ROUND)

    @property
    def is_ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (TrainingState.COMPLETED, TrainingState.ERROR)


TRANSITIONS: Mapping[TrainingState, frozenset[TrainingState]] = {
    TrainingState.INITIAL: frozenset({TrainingState.ONGOING}),
    TrainingState.ONGOING: frozenset({TrainingState.SWAG_ROUND, TrainingState.COMPLETED, TrainingState.ERROR}),
    TrainingState.SWAG_ROUND: frozenset({TrainingState.ONGOING, TrainingState.COMPLETED, TrainingState.ERROR}),
    TrainingState.COMPLETED: frozenset(),
    TrainingState.ERROR: frozenset(),
}
"""The whole life of a training: from each state, where it may go."""


class Evaluation(enum.Enum):
    """When participants are asked to evaluate the global model."""

    EVERY_ROUND = "EVERY_ROUND"
    FINAL_ONLY = "FINAL_ONLY"
    NEVER = "NEVER"


class LateUpdates(enum.Enum):
    """What happens to an update that arrives after its round was closed."""

    REJECT = "REJECT"


class OnMissed(enum.Enum):
    """What happens to a round that reaches its deadline with fewer updates than it needs."""

    FAIL = "FAIL"
    RETRY = "RETRY"


class UpdatePrecision(enum.Enum):
    """How exactly updates say what was learned."""

    FULL = "FULL"
    FLOAT16 = "FLOAT16"
    BFLOAT16 = "BFLOAT16"

    @property
    def dtype(self) -> Dtype | None:
        """The type of differences; None if there are none."""
        return {"FLOAT16": Dtype.F16, "BFLOAT16": Dtype.BF16}.get(self.value)


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """When a round closes.

    Attributes:
        min_updates: So many updates close the round; 0 means one from every member of the cohort.
        deadline: How long a round may stay open; None means without end.
        late_updates: What happens to updates that come too late.
        on_missed: What happens to a round that reaches its deadline with too few.
        max_retries: How many times such a round is repeated; 0 unless on_missed is RETRY.
    """

    min_updates: int = 0
    deadline: timedelta | None = None
    late_updates: LateUpdates = LateUpdates.REJECT
    on_missed: OnMissed = OnMissed.FAIL
    max_retries: int = 0

    @property
    def max_attempts(self) -> int:
        """How many tries a round has."""
        return 1 + self.max_retries


@dataclass(frozen=True, slots=True)
class Aggregation:
    """An aggregator by its registry name, with its options."""

    algorithm: str = "fed_avg"
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How predictions come with an uncertainty: a method by its registry name, with its options."""

    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)


class Goal(enum.Enum):
    """Which direction of a metric is better."""

    MINIMIZE = "MINIMIZE"
    MAXIMIZE = "MAXIMIZE"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which version is the best one.

    Attributes:
        metric: One of the training's metric names.
        patience: The training finishes early after so many model updates in a row without a better version; 0: never.
    """

    metric: str
    goal: Goal
    patience: int = 0

    def prefers(self, value: float, best: float | None) -> bool:
        """Tells whether a value beats the best one so far; of equals the first stays."""
        if best is None:
            return True
        return value < best if self.goal is Goal.MINIMIZE else value > best


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What to train, and how; the defaults are filled in.

    Attributes:
        keep_versions: How many of the latest versions keep their files; 0 means all.
        model_version: The version of the stored model to start from; None means the latest.
        architecture: The registered architecture of the streamed model.
        max_update_norm: How far an update may be from what its participant started from (L2); 0 means any distance.
        update_precision: Whether updates may come as differences in half precision.
    """

    name: str
    description: str
    target_num_updates: int
    metric_names: tuple[str, ...]
    client_ids: tuple[str, ...]
    aggregation: Aggregation
    round_policy: RoundPolicy
    evaluation: Evaluation
    max_num_examples: int
    model_id: str | None = None
    request_id: str | None = None
    selection: Selection | None = None
    keep_versions: int = 0
    model_version: int | None = None
    architecture: str = ""
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    max_update_norm: float = 0.0
    update_precision: UpdatePrecision = UpdatePrecision.FULL


@dataclass(frozen=True, slots=True)
class TrainingFailure:
    """Why a training ended in ERROR."""

    reason: str
    message: str

    @property
    def public_message(self) -> str:
        """What participants may read: who is missing is for the actor only."""
        return self.message.split(MISSING)[0]


@dataclass(frozen=True, slots=True)
class Training:
    """A training as it is now.

    Attributes:
        participant_ids: Left out of lists.
        round: Number of the current round, from 0; after the end, of the last one.
        updates_arrived: Updates or reports of the current round.
        updates_expected: How many of them close the current round; 0 before the start.
        model_version: Updates of the global model so far.
        last_sequence: Sequence of the last event in the training's log.
        best_version: The version that the selection prefers so far, and its value of the metric.
    """

    training_id: str
    spec: TrainingSpec
    actor_id: str
    participant_ids: tuple[str, ...]
    state: TrainingState
    round: int
    updates_arrived: int
    updates_expected: int
    model_id: str
    model_version: int
    failure: TrainingFailure | None
    last_sequence: int
    create_time: datetime
    start_time: datetime | None
    update_time: datetime
    best_version: int | None = None
    best_value: float | None = None
    num_participants: int = 0


def evaluates(spec: TrainingSpec, model_version: int) -> bool:
    """Tells whether a model version is evaluated by the participants.

    A training without metric names has nothing to ask for, so it has no evaluation rounds.
    """
    if not spec.metric_names or spec.evaluation is Evaluation.NEVER:
        return False
    return spec.evaluation is Evaluation.EVERY_ROUND or model_version >= spec.target_num_updates


def collects(spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
    """Tells whether SWAG moments are collected around a model version.

    Args:
        spec: What to train.
        model_version: The version.
        last: Whether the training makes no more versions.
    """
    if spec.uncertainty.method != "swag":
        return False
    every = int(spec.uncertainty.options["every"])
    return last or (every > 0 and model_version % every == 0)


def out_of_patience(spec: TrainingSpec, model_version: int, best_version: int | None) -> bool:
    """Tells whether a training finishes before its target, since its versions get no better."""
    patience = 0 if spec.selection is None else spec.selection.patience
    return 0 < patience <= model_version - (best_version or 0) and best_version is not None
