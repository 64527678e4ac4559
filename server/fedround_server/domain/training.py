"""Trainings: what an actor asked for, and where it is in its life."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.config import Config
from fedround_server.domain.failure import PARTICIPANTS_FAILED, ParticipantFailure
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.privacy import PrivacyAccount
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection
from fedround_server.domain.transport import TensorPrecision, Transport, UpdatePrecision
from fedround_server.domain.uncertainty import NoUncertainty, Uncertainty

MAX_NUM_EXAMPLES = 2**31
MAX_TARGET_NUM_UPDATES = 1_000_000
MAX_NAMED = 20


class TrainingState(enum.Enum):
    """Where a training is in its life."""

    INITIAL = "INITIAL"
    ONGOING = "ONGOING"
    SWAG_ROUND = "SWAG_ROUND"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"

    @property
    def is_running(self) -> bool:
        """Whether rounds take place."""
        return self in (TrainingState.ONGOING, TrainingState.SWAG_ROUND)

    @property
    def is_ended(self) -> bool:
        """Whether the training is over."""
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


class IntegerTensors(enum.Enum):
    """How tensors of integers and booleans are aggregated."""

    HEAVIEST = "HEAVIEST"
    MEAN = "MEAN"


class Goal(enum.Enum):
    """Which direction of a metric is better."""

    MINIMIZE = "MINIMIZE"
    MAXIMIZE = "MAXIMIZE"


class Stop(enum.Enum):
    """When a training that its actor stops ends."""

    AFTER_ROUND = "AFTER_ROUND"
    NOW = "NOW"


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
        """Returns whether a value is better than the best one so far; of equal values the first stays."""
        if best is None:
            return True
        return value < best if self.goal is Goal.MINIMIZE else value > best


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What to train, and how; the defaults are filled in.

    Attributes:
        keep_versions: How many of the latest versions keep their files; 0 means all.
        keep_update_rounds: Of how many of the latest rounds the files of updates are kept; None means all.
        model_version: The version of the stored model to start from; None means the latest.
        architecture: The registered architecture of the streamed model.
        max_update_norm: How far an update may be from what its participant started from (L2); 0 means any distance.
        update_precision: In which precision updates may have the tensors that match no rule of tensor_precisions.
        stochastic_rounding: Whether participants are asked to round these tensors at random.
        tensor_precisions: In which precision updates may have other tensors.
        allow_non_finite_buffers: Whether the model may have Inf and NaN, and updates in the same places.
        tensors: Which tensors of the model updates have.
        config: What all participants get with each round. It is left out of lists, and so is client_config.
        client_config: What single participants get on top of that, by user; for the actor only.
        cohort: Who takes part in each round; None for all participants.
        evaluation_policy: When evaluation rounds close; None for what follows from round_policy and selection.
        allow_relays: Whether participants may send partial sums.
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
    uncertainty: Uncertainty = field(default_factory=NoUncertainty)
    max_update_norm: float = 0.0
    update_precision: UpdatePrecision = UpdatePrecision.FULL
    stochastic_rounding: bool = False
    tensor_precisions: tuple[TensorPrecision, ...] = ()
    allow_non_finite_buffers: bool = False
    integer_tensors: IntegerTensors = IntegerTensors.HEAVIEST
    tensors: TensorSelection = ALL_TENSORS
    config: Config = field(default_factory=dict)
    client_config: Mapping[str, Config] = field(default_factory=dict)
    cohort: Cohort | None = None
    evaluation_policy: RoundPolicy | None = None
    keep_update_rounds: int | None = None
    allow_relays: bool = False

    @property
    def transport(self) -> Transport:
        """The precisions of all tensors of updates."""
        return Transport(self.tensor_precisions, self.update_precision, self.stochastic_rounding)


@dataclass(frozen=True, slots=True)
class TrainingFailure:
    """Why a training ended in ERROR.

    Attributes:
        reason: UPPER_SNAKE, for programs.
        message: What happened, for everyone who may see the training.
        missing: The names of the participants whose submissions were missing, with the reasons of those that failed;
            for the actor only.
    """

    reason: str
    message: str
    missing: tuple[str, ...] = ()

    @property
    def actor_message(self) -> str:
        """What happened, with the names of the first MAX_NAMED missing or failed participants."""
        if not self.missing:
            return self.message
        more = len(self.missing) - MAX_NAMED
        named = ", ".join(self.missing[:MAX_NAMED])
        what = "failed" if self.reason == PARTICIPANTS_FAILED else "missing"
        return f"{self.message}; {what}: {named}" + (f" and {more} more" if more > 0 else "")


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
        failures: The first MAX_NAMED failures in the current round; for the actor only, and left out of lists.
        paused: Whether no further round opens.
        stop: When its actor had it stopped; None if it did not.
        round_closed: Whether the current round accepts no more updates or reports.
        shadow_model_ids: The models of the shadow aggregations; for the actor only, and left out of lists.
        account: How many rounds were charged, with differential privacy; left out of lists.
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
    failures: tuple[ParticipantFailure, ...] = ()
    paused: bool = False
    stop: Stop | None = None
    round_closed: bool = False
    shadow_model_ids: tuple[str, ...] = ()
    account: PrivacyAccount | None = None
    actor_name: str = ""


def out_of_patience(spec: TrainingSpec, model_version: int, best_version: int | None) -> bool:
    """Returns whether a training finishes before its target, because its versions got no better."""
    patience = 0 if spec.selection is None else spec.selection.patience
    return 0 < patience <= model_version - (best_version or 0) and best_version is not None
