"""Whether a round is over while a participant works for it."""

from __future__ import annotations

import math

from fedround.v1.training_pb2 import GetTrainingRequest
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

    def __init__(self, rpc: Rpc, training_id: str, number: int) -> None:
        """Creates a check of a round, which has asked nothing yet."""
        self._rpc = rpc
        self._training_id = training_id
        self._number = number
        self._due = -math.inf
        self.was_over = False

    def __call__(self) -> bool:
        """Returns whether the round accepts no more updates; False as long as the server does not answer."""
        if not self.was_over and self._rpc.clock.time() >= self._due:
            request = GetTrainingRequest(training_id=self._training_id)
            try:
                training = self._rpc.unary(self._rpc.trainings.GetTraining, request, ASK_SECONDS).training
                self.was_over = training.round != self._number or training.round_closed
            except FedroundError as error:
                self.was_over = isinstance(error, TrainingNotFound)
            self._due = self._rpc.clock.time() + INTERVAL_SECONDS
        return self.was_over
