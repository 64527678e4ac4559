"""What happens in a simulated training, from the events that its actor gets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedround.v1.event_pb2 import Event
from fedround_client.progress import kind_name


@dataclass
class RoundRecord:
    """A round.

    Attributes:
        number: Its number, from 0.
        kind: "TRAIN", "EVALUATE" or "SWAG".
        model_version: Version of the model after the round; before it, while the round is open.
        arrived: How many updates or reports have arrived.
        expected: How many close it; 0 before the first one has arrived.
        failed: How many participants have failed.
        metrics: Means, weighted by the numbers of examples.
        seconds: From its start to its end; None while it is open.
    """

    number: int
    kind: str
    model_version: int
    arrived: int = 0
    expected: int = 0
    failed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Failure:
    """A client that failed in a round.

    Attributes:
        client: Index of the client.
        round: Number of the round, from 0.
        reason: The reason for programs, such as TRAIN_FAILED.
        message: Type and text of the exception.
    """

    client: int
    round: int
    reason: str
    message: str


class History:
    """The rounds so far.

    Attributes:
        rounds: The rounds, in their order.
        failures: The failures of clients, in their order.
        planned: How many rounds the training has, of all kinds; fewer if it stops early.
    """

    def __init__(self, indices: Mapping[str, int], planned: int) -> None:
        """Creates an empty history.

        Args:
            indices: Indices of the clients by user id.
            planned: How many rounds the training has.
        """
        self.planned = planned
        self.rounds: list[RoundRecord] = []
        self.failures: list[Failure] = []
        self._indices = indices
        self._started_at = 0.0

    def add(self, event: Event) -> None:
        """Adds an event, unless it changes nothing here."""
        match event.WhichOneof("payload"):
            case "round_started":
                started = event.round_started
                if not self.rounds or self.rounds[-1].number != started.round:
                    self.rounds.append(RoundRecord(started.round, kind_name(started), started.model.version))
                    self._started_at = time.monotonic()
            case "update_accepted":
                accepted = event.update_accepted
                self._count(accepted.round, accepted.updates_arrived, accepted.updates_expected)
            case "participant_failed":
                failed = event.participant_failed
                index = self._indices[failed.participant_id]
                self.failures.append(Failure(index, failed.round, failed.reason, failed.message))
                self._count(failed.round, failed.updates_arrived, failed.updates_expected)
                self.rounds[-1].failed += 1
            case "round_closed":
                closed, record = event.round_closed, self.rounds[-1]
                record.model_version, record.arrived = closed.model_version, closed.num_updates
                record.metrics = dict(sorted(closed.metrics.items()))
                record.seconds = time.monotonic() - self._started_at

    def _count(self, number: int, arrived: int, expected: int) -> None:
        record = self.rounds[-1]
        if record.number == number:
            record.arrived, record.expected = arrived, expected
