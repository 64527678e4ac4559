"""A round of a relay's parent, and how a relay runs it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, RoundStarted
from fedround.v1.training_pb2 import TrainingSpec
from fedround_client.round_over import OverCheck

NAMESPACE = uuid.UUID("6d7f0c7e-6f0a-5d0e-9a53-2f1f6f0f3a11")
"""Of the ids of requests that are made of those of rounds."""


class NoSum(Exception):
    """The participants of a relay have no result for a round; the arguments are a reason and a message."""


@dataclass(frozen=True)
class RelayOptions:
    """How a relay runs the rounds of its parent.

    Attributes:
        min_updates: A round has no result if fewer of its participants have submitted at the deadline.
        margin: Seconds before the parent's deadline at which the round of the participants ends, so that their sum
            arrives in time; at most half of the time that is left when it begins.
        absent_after: Seconds that a participant may be without a connection before a round no longer waits for it; None
            for what the parent's training says.
        labels: Only users with all of these labels take part.
        allow_relays: Whether participants may be relays, which send sums: neither max_num_examples nor
            max_update_norm limits these.
    """

    min_updates: int = 1
    margin: float = 10.0
    absent_after: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    allow_relays: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: One is out of range.
        """
        if self.min_updates < 1:
            raise ValueError(f"min_updates must be at least 1, not {self.min_updates}")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0, not {self.margin}")


@dataclass(frozen=True)
class RelayRound:
    """A round of the parent.

    Attributes:
        training_id: UUID of the parent's training.
        spec: Its spec.
        started: The event that started the round.
        seconds: How long the participants have; None for any time.
        is_over: Returns whether the parent waits no more.
    """

    training_id: str
    spec: TrainingSpec
    started: RoundStarted
    seconds: float | None
    is_over: OverCheck

    @property
    def evaluates(self) -> bool:
        """Whether the participants evaluate the model."""
        return self.started.kind == ROUND_KIND_EVALUATE

    @property
    def name(self) -> str:
        """The name of what is made for it at the relay's own server."""
        return f"{made_for(self.training_id)} round {self.started.round + 1}"

    def request_id(self, attempt: int) -> str:
        """Returns the id of the request that creates the training for it, so that it is created once."""
        return str(uuid.uuid5(NAMESPACE, f"{self.training_id}/{self.started.round}/{attempt}"))


def made_for(training_id: str) -> str:
    """Returns what the names of all begin with that is made for a training of the parent."""
    return f"relay of {training_id},"
