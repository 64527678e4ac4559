"""What runs the rounds of a participant."""

from __future__ import annotations

from typing import Protocol

from fedround.v1.event_pb2 import RoundStarted
from fedround.v1.user_pb2 import User
from fedround_client.server_clock import ServerClock


class Runner(Protocol):
    """Runs rounds, one at a time: with the functions of a user, or as a relay."""

    server_clock: ServerClock

    @property
    def can_evaluate(self) -> bool:
        """Whether it runs evaluation rounds."""

    def participate_as(self, user: User) -> None:
        """Names the user that takes part.

        Raises:
            RoleRequired: The user may not run rounds this way.
        """

    def run(self, training_id: str, started: RoundStarted, name: str) -> int:
        """Runs a round until its result is accepted; `RoundRunner.run` describes it."""

    def keeps_update(self, training_id: str) -> bool:
        """Returns whether an update waits for the next round of an asynchronous training."""

    def forget(self, training_id: str) -> None:
        """Forgets the update that waits for the next round of a training."""

    def forget_all(self) -> None:
        """Forgets all updates that wait for a next round."""

    def forget_update(self, training_id: str, number: int) -> None:
        """Forgets what the update of a round has changed: the server has lost it."""

    def forget_training(self, training_id: str) -> None:
        """Removes what is not needed once a training has ended."""
