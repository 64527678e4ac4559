"""What a tracker is: something that keeps the course of a training, one record for each round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from fedround.v1.training_pb2 import Training
from fedround_client.flat import flatten

_LEFT_OUT = ("client_ids", "client_config", "request_id")
"""Fields of a spec that are no parameters: who takes part, and what is meant for single participants."""


@dataclass(frozen=True)
class RoundRecord:
    """A round that is done.

    Attributes:
        sequence: Position of its end in the log of the training: records are written in this order.
        time: When it was done: Unix time in seconds.
        number: Its number, from 0.
        kind: What it asked for: TRAIN, EVALUATE or SWAG.
        version: The version of the model after the round; of an evaluation, the one that was evaluated.
        num_updates: Updates or reports in the result.
        num_failed: Participants that failed or were absent; 0 to a participant, who does not see them.
        seconds: How long it took since it was opened; None if its beginning was not seen.
        metrics: Means of the reported metrics, weighted by the numbers of examples.
        not_finite: How many participants reported NaN or infinity, by metric.
        epsilon: With differential privacy, what the rounds up to the next one have spent; None if it was not recorded
            while the version was the latest.
    """

    sequence: int
    time: float
    number: int
    kind: str
    version: int
    num_updates: int
    num_failed: int = 0
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    not_finite: Mapping[str, int] = field(default_factory=dict)
    epsilon: float | None = None

    def values(self) -> Iterator[tuple[str, float]]:
        """Yields all numbers with names that tell kinds of rounds apart, such as "evaluate/accuracy"."""
        kind = self.kind.lower()
        for name, value in self.metrics.items():
            yield f"{kind}/{name}", value
        yield f"{kind}_round/updates", self.num_updates
        yield f"{kind}_round/failed", self.num_failed
        if self.seconds is not None:
            yield f"{kind}_round/seconds", self.seconds
        if self.epsilon is not None:
            yield "privacy/epsilon", self.epsilon


@dataclass(frozen=True)
class EndRecord:
    """The end of a training.

    Attributes:
        sequence: Position of its last event in the log.
        time: Unix time in seconds.
        state: "completed", "stopped", "failed" or "removed".
        reason: Why it failed or ended early, for programs; may be empty.
        message: Why it failed, for people.
    """

    sequence: int
    time: float
    state: str
    reason: str = ""
    message: str = ""


class Tracker(Protocol):
    """Keeps what it is told of one training, and knows how much it has when it is opened again.

    What `write` has been given is kept when it returns, also if the program is killed then. If it is killed before, the
    same record comes again after `begin`, and must not be there twice.
    """

    def begin(self, training: Training) -> int:
        """Opens what was written about a training before, or creates it.

        Returns:
            The sequence of the last record that is there; 0 if there is none.

        Raises:
            TrackerFailed: It cannot be opened, or belongs to another training.
        """

    def write(self, record: RoundRecord) -> None:
        """Keeps a round."""

    def end(self, record: EndRecord) -> None:
        """Keeps how the training ended. Nothing follows."""

    def close(self) -> None:
        """Releases files and connections; also called if `begin` has failed."""


def parameters(training: Training) -> dict[str, str]:
    """Returns the spec of a training as texts by name, such as "aggregation.fed_prox.mu"; without what is empty."""
    # Takes a while to import, and a participant does not need it.
    from google.protobuf.json_format import MessageToDict

    spec = MessageToDict(training.spec, preserving_proto_field_name=True)
    return dict(flatten({name: value for name, value in spec.items() if name not in _LEFT_OUT}))


def file_name(training: Training) -> str:
    """Returns a name for files about a training: its name without special characters, and the beginning of its id."""
    letters = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in training.spec.name[:40])
    return f"{letters}-{training.training_id[:8]}".lstrip("-")


def iso_time(time: float) -> str:
    """Returns Unix time in ISO 8601, in UTC."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
