"""Whether a round is over while a participant works for it."""

from __future__ import annotations

import math

from fedround.v1.event_pb2 import ROUND_KIND_TRAIN, RoundStarted
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ERROR,
    GetTrainingRequest,
    Training,
)
from fedround_client.errors import FedroundError, TrainingNotFound
from fedround_client.rpc import Rpc

INTERVAL_SECONDS = 1.0
"""The server is asked at most so often."""
ASK_SECONDS = 5.0
"""How long the server may take to answer."""


class RoundOver(Exception):
    """A function of the user has learnt that its round is over: what it returned is not sent."""


class OverCheck:
    """Asks the server whether a round is over: `Round.is_over`.

    Attributes:
        was_over: The last answer.
    """

    def __init__(self, rpc: Rpc, training_id: str, started: RoundStarted) -> None:
        """Creates a check of a round, which has asked nothing yet."""
        self._rpc = rpc
        self._training_id = training_id
        self._started = started
        self._due = -math.inf
        self.was_over = False

    def __call__(self) -> bool:
        """Returns whether the round accepts no more updates; False as long as the server does not answer."""
        if not self.was_over and self._rpc.clock.time() >= self._due:
            request = GetTrainingRequest(training_id=self._training_id)
            try:
                training = self._rpc.unary(self._rpc.trainings.GetTraining, request, ASK_SECONDS).training
                self.was_over = self._is_over(training)
            except FedroundError as error:
                self.was_over = isinstance(error, TrainingNotFound)
            self._due = self._rpc.clock.time() + INTERVAL_SECONDS
        return self.was_over

    def _is_over(self, training: Training) -> bool:
        started = self._started
        if not is_asynchronous(started):
            return training.round != started.round or training.round_closed
        version, base = training.model_version + training.round_closed, started.model.version
        is_complete = training.model_version >= training.spec.target_num_updates
        is_stale = version - base > started.aggregation.buffering.max_staleness
        return is_complete or is_stale or training.state in (TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR)


def is_asynchronous(started: RoundStarted) -> bool:
    """Returns whether an update of a round may also count in a later one (FedBuff, FedAsync)."""
    return started.kind == ROUND_KIND_TRAIN and started.aggregation.HasField("buffering")
