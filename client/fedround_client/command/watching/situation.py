"""What is known of a training that is watched: folded from observations, without any call."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from google.protobuf.timestamp_pb2 import Timestamp

from fedround.v1.aggregation_pb2 import UPDATE_PRECISION_FULL, UPDATE_PRECISION_UNSPECIFIED
from fedround.v1.event_pb2 import (
    ROUND_KIND_EVALUATE,
    ROUND_KIND_TRAIN,
    Event,
    ParticipantFailed,
    RoundClosed,
    RoundKind,
    RoundStarted,
    UpdateAccepted,
)
from fedround.v1.round_pb2 import ROUND_STATE_AGGREGATING, ROUND_STATE_OPEN, Round, RoundParticipant
from fedround.v1.training_pb2 import Training
from fedround_client.observer import DescribedEvent, Unreachable

EVENTS = 100
"""How many lines of events are kept."""
LAST_VERSIONS = 5
"""Of how many versions the time says when the training will end."""
LEAST_VERSIONS = 2
"""Of fewer versions nothing is said."""


def seconds_of(moment: Timestamp) -> float:
    """Returns a time as Unix time in seconds."""
    return moment.seconds + moment.nanos / 1e9


@dataclass(frozen=True)
class Upload:
    """The bytes of a participant's upload at a moment, and how many came per second before it."""

    time: float
    size: int
    speed: float = 0.0

    def then(self, time: float, size: int) -> Upload:
        """Returns the upload at a later moment."""
        if size <= self.size or time <= self.time:
            return Upload(time, size) if size < self.size else self
        return Upload(time, size, (size - self.size) / (time - self.time))


@dataclass
class Situation:
    """What is known of a training.

    Attributes:
        training: The training as it was read last.
        current: Its current round; None if it is not known, to a participant for one.
        started: The start of the round that was opened last.
        metrics: Means of the metrics by kind of round and name, as (version, value), in the order of the rounds.
        lines: The last events.
        uploads: Uploads of the current round, by user id.
        unreachable: Why the server does not answer; empty if it does.
        end: The last event of the training.
    """

    training: Training
    current: Round | None = None
    started: RoundStarted | None = None
    open_time: float | None = None
    metrics: dict[RoundKind.ValueType, dict[str, list[tuple[int, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS))
    uploads: dict[str, Upload] = field(default_factory=dict)
    unreachable: str = ""
    end: Event | None = None
    _version_times: dict[int, float] = field(default_factory=dict)
    # What the events say of the current round, which the training and the round that were read may not know yet.
    _counts: tuple[int, int] | None = None
    _done: int | None = None

    def add(self, item: DescribedEvent | Training | Round | Unreachable, now: float) -> None:
        """Takes an observation.

        Args:
            item: The observation.
            now: Unix time in seconds.
        """
        if isinstance(item, DescribedEvent):
            self.lines.append(item.line)
            self._add_event(item.event)
        elif isinstance(item, Training):
            self.training = item
        elif isinstance(item, Round):
            self._add_round(item, now)
        else:
            self.unreachable = item

    @property
    def number(self) -> int:
        """The number of the current round, from 0."""
        numbers = [self.training.round]
        if self.started is not None:
            numbers.append(self.started.round)
        if self.current is not None:
            numbers.append(self.current.number)
        return max(numbers)

    @property
    def kind(self) -> RoundKind.ValueType:
        """What the current round asks for."""
        if self.current is not None:
            return self.current.kind
        return ROUND_KIND_TRAIN if self.started is None else self.started.kind

    @property
    def arrived(self) -> tuple[int, int]:
        """Updates or reports of the current round that have arrived, and how many close it."""
        if self.current is not None:
            return self.current.updates_arrived, self.current.updates_expected
        if self._counts is not None:
            return self._counts
        is_read = self.training.round == self.number
        return (self.training.updates_arrived, self.training.updates_expected) if is_read else (0, 0)

    @property
    def version(self) -> int:
        """The latest version of the model."""
        return max(self.training.model_version, max(self._version_times, default=0))

    @property
    def is_done(self) -> bool:
        """Whether the current round has a result, and no further round has been opened."""
        return self._done == self.number

    @property
    def is_aggregating(self) -> bool:
        """Whether the current round is closed, and its result is being computed."""
        if self.current is not None:
            return self.current.state == ROUND_STATE_AGGREGATING
        arrived, expected = self.arrived
        return 0 < expected <= arrived and self.end is None and not self.is_done

    @property
    def update_bytes(self) -> int | None:
        """The size of the file of an update, if all of them have the size of the model."""
        started, spec = self.started, self.training.spec
        if started is None or started.kind != ROUND_KIND_TRAIN:
            return None
        is_whole = not (started.trainable or started.private or started.tensor_precisions)
        is_full = started.update_precision in (UPDATE_PRECISION_UNSPECIFIED, UPDATE_PRECISION_FULL)
        is_alone = not spec.aggregation.HasField("scaffold")
        return (started.model.size_bytes or None) if is_whole and is_full and is_alone else None

    @property
    def missing(self) -> list[RoundParticipant]:
        """The participants whom the open round waits for, and those that failed; who is under way comes first."""
        if self.current is None or self.current.state != ROUND_STATE_OPEN:
            return []
        found = [one for one in self.current.participants if not one.arrived]
        return sorted(found, key=_order)

    @property
    def num_missing(self) -> int:
        """How many these are, with those that are not known."""
        if self.current is None or self.current.state != ROUND_STATE_OPEN:
            return 0
        return max(len(self.missing), self.current.num_participants - self.current.updates_arrived)

    @property
    def shown_metrics(self) -> Mapping[str, list[tuple[int, float]]]:
        """The metrics of evaluations by version, or those sent with updates if there are no evaluations."""
        evaluated = self.metrics.get(ROUND_KIND_EVALUATE)
        return evaluated or self.metrics.get(ROUND_KIND_TRAIN) or {}

    def forecast_end(self, now: float) -> tuple[float, float] | None:
        """Returns when the training will end if versions take as long as the last ones, and how long these took.

        Returns:
            Unix time and seconds; None if too few versions were made to say it, or if no rounds are opened.
        """
        training = self.training
        remaining = training.spec.target_num_updates - max(self._version_times, default=0)
        if len(self._version_times) <= LEAST_VERSIONS or remaining <= 0 or training.paused or training.stopped:
            return None
        times = [self._version_times[version] for version in sorted(self._version_times)]
        steps = [later - earlier for earlier, later in pairwise(times)]
        each = statistics.median(steps[-LAST_VERSIONS:])
        return max(times[-1] + each, now) + (remaining - 1) * each, each

    def _add_event(self, event: Event) -> None:
        match event.WhichOneof("payload"):
            case "training_started":
                self._version_times[0] = seconds_of(event.create_time)
            case "round_started":
                self._begin_round(event)
            case "update_accepted":
                self._count(event.update_accepted)
            case "participant_failed":
                self._count(event.participant_failed)
            case "round_closed":
                self._close_round(event.round_closed, seconds_of(event.create_time))
            case "training_finished" | "training_failed" | "training_removed":
                self.end = event

    def _begin_round(self, event: Event) -> None:
        if self.started is None or self.started.round != event.round_started.round:
            self.uploads, self._counts = {}, None
            self.open_time = seconds_of(event.create_time)
        self.started = event.round_started
        if self.current is not None and self.current.number < event.round_started.round:
            self.current = None

    def _count(self, told: UpdateAccepted | ParticipantFailed) -> None:
        if told.round != self.number:
            return
        self._counts = told.updates_arrived, told.updates_expected
        if self.current is None:
            return
        self.current.updates_arrived, self.current.updates_expected = self._counts
        for one in self.current.participants:
            if isinstance(told, UpdateAccepted) and one.user_id == told.participant_id:
                one.arrived = True

    def _close_round(self, closed: RoundClosed, time: float) -> None:
        self._done = closed.round
        for name, value in closed.metrics.items():
            self.metrics[closed.kind][name].append((closed.model_version, value))
        if closed.kind == ROUND_KIND_TRAIN:
            self._version_times.setdefault(closed.model_version, time)
        if self.current is not None and self.current.number == closed.round:
            self.current = None

    def _add_round(self, found: Round, now: float) -> None:
        if found.number < self.number:
            return
        # A copy: events change it.
        self.current = Round()
        self.current.CopyFrom(found)
        self.uploads = {
            one.user_id: self.uploads.get(one.user_id, Upload(now, one.uploaded_bytes)).then(now, one.uploaded_bytes)
            for one in found.participants
            if one.uploaded_bytes and not one.arrived
        }


def _order(one: RoundParticipant) -> tuple[int, str]:
    """Sorts participants: those that send, those that are connected, those that failed, and those that are away."""
    if one.HasField("failure"):
        return 2, one.name
    if one.uploaded_bytes:
        return 0, one.name
    return (1 if one.subscribed else 3), one.name
