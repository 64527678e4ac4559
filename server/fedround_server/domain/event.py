"""Events: what happens in a training, as a log without gaps, except where a backup was restored."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.config import Value
from fedround_server.domain.model import VersionFile
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection
from fedround_server.domain.transport import FULL_TRANSPORT, Transport
from fedround_server.domain.uncertainty import Swag

HISTORY_BITS = 32
"""The bits of a sequence that count the events of a history; those above them count the histories of a log.

A log has one history until its database is restored from a backup. What a subscriber saw of a history that was lost
must not be taken for a part of the one that follows.
"""


def history_of(sequence: int) -> int:
    """Returns the history that a sequence belongs to, from 0."""
    return sequence >> HISTORY_BITS


def next_history(sequence: int) -> int:
    """Returns the number before the first sequence of the history after that of a sequence."""
    return history_of(sequence) + 1 << HISTORY_BITS


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model version by reference."""

    model_id: str
    version: int
    blob: VersionFile


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """The training was started, or a client was registered in a running one."""

    target_num_updates: int
    model: ModelInfo


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """A round was opened.

    Attributes:
        kind: The kind of round, as clients see it.
        model: The model to start from; if each participant is assigned a model, the one that the chain began with.
        local_rounds: How many local rounds each trains before it submits.
        assigned: Whether each participant is assigned a model.
        swag: What a SWAG round asks for.
        attempt: The attempt at the round, from 1.
        transport: The precisions in which updates may come.
        tensors: Which tensors an update has.
        submitted: Whether the reader has submitted in it. This, and what a repeated round changes, is not in the log.
        is_configured: Whether the training has a configuration in this round.
        config: The configuration of the round for the reader, by name; not in the log.
        config_of: The reader, if it has values of its own among these; not in the log.
        asked: Whether the reader has to submit: it is a member of the cohort, has not submitted, and the round is open;
            not in the log.
    """

    round: int
    kind: str
    model: ModelInfo
    deadline: datetime | None
    aggregation: Aggregation
    metric_names: tuple[str, ...]
    local_rounds: int = 1
    assigned: bool = False
    swag: Swag | None = None
    attempt: int = 1
    submitted: bool = False
    transport: Transport = FULL_TRANSPORT
    tensors: TensorSelection = ALL_TENSORS
    is_configured: bool = False
    config: Mapping[str, Value] = field(default_factory=dict)
    config_of: str = ""
    asked: bool = False


@dataclass(frozen=True, slots=True)
class RoundExtended:
    """A round missed its deadline, or lost updates, and is repeated; it keeps its other updates."""

    round: int
    attempt: int
    deadline: datetime | None
    updates_arrived: int
    updates_expected: int


@dataclass(frozen=True, slots=True)
class UpdateAccepted:
    """An update or a report was accepted."""

    update_id: str
    round: int
    participant_id: str
    num_examples: int
    updates_arrived: int
    updates_expected: int


@dataclass(frozen=True, slots=True)
class UpdateLost:
    """The stored file of an accepted update was damaged: the update does not count, and is asked for anew."""

    update_id: str
    round: int
    participant_id: str
    updates_arrived: int
    updates_expected: int


@dataclass(frozen=True, slots=True)
class ParticipantFailed:
    """A participant reported a failure, or is absent: the round does not wait for it."""

    round: int
    participant_id: str
    participant_name: str
    reason: str
    message: str
    updates_arrived: int
    updates_expected: int


@dataclass(frozen=True, slots=True)
class WorkNotNeeded:
    """A round was closed without the submissions of some members, which are not needed any more.

    Attributes:
        round: The round.
        num_updates: How many submissions were enough.
        num_participants: How many participants were asked.
    """

    round: int
    num_updates: int
    num_participants: int


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """A round's result is committed.

    Attributes:
        metrics: The means of the metrics that the training asks for.
        more_metrics: The means of all other metrics that were reported; for the actor only.
        not_finite: How many values of a metric were NaN or infinite, and are not part of the means; for the actor only.
    """

    round: int
    kind: str
    model_version: int
    num_updates: int
    metrics: Mapping[str, float]
    more_metrics: Mapping[str, float] = field(default_factory=dict)
    not_finite: Mapping[str, int] = field(default_factory=dict)

    @property
    def public(self) -> "RoundClosed":
        """What participants may see: the mean of a metric that only one of them reported is that one's own value."""
        return replace(self, more_metrics={}, not_finite={})


@dataclass(frozen=True, slots=True)
class ClientRemoved:
    """A participant was removed."""

    client_id: str


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The target is reached, patience or the privacy budget ran out, or the actor stopped the training.

    Attributes:
        stopped_early: Whether patience or the privacy budget ran out.
        stopped: Whether the actor stopped it.
        reason: PRIVACY_BUDGET, or empty.
    """

    model_id: str
    model_version: int
    stopped_early: bool = False
    stopped: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TrainingPaused:
    """The actor paused the training."""


@dataclass(frozen=True, slots=True)
class TrainingResumed:
    """The actor resumed the training."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The actor asked to stop the training after the round that is open or being aggregated."""


@dataclass(frozen=True, slots=True)
class ConfigUpdated:
    """The actor changed the configuration from a round on."""

    from_round: int


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The training ended in ERROR."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TrainingRemoved:
    """The training was removed."""


Payload = (
    TrainingStarted
    | RoundStarted
    | RoundExtended
    | UpdateAccepted
    | UpdateLost
    | ParticipantFailed
    | WorkNotNeeded
    | RoundClosed
    | ClientRemoved
    | TrainingPaused
    | TrainingResumed
    | StopRequested
    | ConfigUpdated
    | TrainingFinished
    | TrainingFailed
    | TrainingRemoved
)

LAST_OF_A_TRAINING = (TrainingFinished, TrainingFailed, TrainingRemoved)
"""After one of these, the only thing that can happen to a training is its removal."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a training's log."""

    training_id: str
    sequence: int
    create_time: datetime
    payload: Payload
