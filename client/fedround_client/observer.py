"""What can be known of a running training, for live views: its events, and who its round waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import GetRoundRequest, Round
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR, GetTrainingRequest, Training
from fedround_client.errors import FedroundError, NotActor, PermissionDenied
from fedround_client.rpc import Rpc
from fedround_client.subscription import Subscription

ASK_SECONDS = 5.0
"""How long the server may take to answer a question."""
LEAST_SECONDS = 1.0
"""Rounds are asked for at most so often."""
IDLE_SECONDS = 5.0
"""Rounds are asked for at least so often, also if nothing changes."""
COST = 10.0
"""Questions take at most one part in so many of the time."""
PARTICIPANTS = 200
"""How many participants of a round are asked for; those that failed and those that are missing come first."""
HISTORY_EVENTS = 5000
"""A training is read from its beginning if that takes about so many events at most."""


class Unreachable(str):
    """Why the server does not answer; empty once it does again."""

    __slots__ = ()


@dataclass(frozen=True)
class DescribedEvent:
    """An event, and its line."""

    event: Event
    line: str


Observation: TypeAlias = DescribedEvent | Training | Round | Unreachable | Exception | None
"""Something that is known now. None: there will be no more events; an exception: they cannot be read."""


class Observer:
    """Follows a training in two threads, one for its events and one that asks for its round. Close it at the end."""

    def __init__(
        self,
        rpc: Rpc,
        training: Training,
        describe: Callable[[Event], str],
        observations: SimpleQueue[Observation],
    ) -> None:
        """Starts the threads.

        Args:
            rpc: Calls the server; closed by the caller, after this observer.
            training: The training as it is now.
            describe: Makes a line of an event; may call the server.
            observations: Gets what becomes known.
        """
        self._rpc = rpc
        self._describe = describe
        self._training = training
        self._observations = observations
        self._closed, self._news = threading.Event(), threading.Event()
        self._is_training_stale, self._may_see_rounds, self._is_reachable = False, True, True
        for target in (self._read, self._ask):
            threading.Thread(target=target, name=f"observer{target.__name__}", daemon=True).start()

    def close(self) -> None:
        """Ends the questions; the events end when the channel is closed."""
        self._closed.set()
        self._news.set()

    def _read(self) -> None:
        """Puts events."""
        events = self._training.round * max(1, self._training.num_participants)
        cursors = {self._training.training_id: 0} if events <= HISTORY_EVENTS else None
        try:
            for event in _Subscription(self._rpc, self._training.training_id, cursors, self._lose):
                self._observations.put(DescribedEvent(event, self._describe(event)))
                if event.WhichOneof("payload") != "update_accepted":
                    self._is_training_stale = True
                self._news.set()
            self._observations.put(None)
        except Exception as error:  # raised by the thread that shows it
            self._observations.put(error)

    def _lose(self, error: FedroundError) -> None:
        """Puts that the server does not answer. The next answer to a question says that it does."""
        self._is_reachable, self._is_training_stale = False, True
        self._observations.put(Unreachable(error))
        self._news.set()

    def _ask(self) -> None:
        """Puts the training and its round as they change."""
        last: Round | None = None
        while not self._closed.is_set():
            # Before the questions: an event may come while they are answered.
            self._news.clear()
            begin = time.monotonic()
            cost = 0.0
            try:
                if self._is_training_stale or not self._may_see_rounds:
                    self._ask_for_training()
                found = self._round()
                is_idle = found == last
                if found is not None and not is_idle:
                    self._observations.put(found)
                last, cost = found, time.monotonic() - begin
                if not self._is_reachable:
                    self._is_reachable = True
                    self._observations.put(Unreachable())
            except FedroundError as error:
                is_idle = False
                # Others end the subscription, too.
                if error.transient:
                    self._lose(error)
            self._pause(cost, is_idle)

    def _ask_for_training(self) -> None:
        self._is_training_stale = False
        try:
            request = GetTrainingRequest(training_id=self._training.training_id)
            self._training = self._rpc.unary(self._rpc.trainings.GetTraining, request, ASK_SECONDS).training
        except FedroundError:
            self._is_training_stale = True
            raise
        self._observations.put(self._training)

    def _round(self) -> Round | None:
        """Returns the current round; None if there is none, or if it may not be seen, by a participant for one."""
        ended = self._training.state in (TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR)
        if ended or not self._training.HasField("start_time") or not self._may_see_rounds:
            return None
        request = GetRoundRequest(training_id=self._training.training_id, page_size=PARTICIPANTS)
        try:
            return self._rpc.unary(self._rpc.rounds.GetRound, request, ASK_SECONDS).round
        except (NotActor, PermissionDenied):
            self._may_see_rounds = False
            return None

    def _pause(self, cost: float, is_idle: bool) -> None:
        """Waits until the next question may be asked, and, if nothing changes, for the next event.

        Args:
            cost: How many seconds the server took to answer; 0 if it did not.
            is_idle: Whether nothing has changed.
        """
        least = max(LEAST_SECONDS, COST * cost)
        if not self._closed.wait(least) and is_idle:
            self._news.wait(IDLE_SECONDS - LEAST_SECONDS)


class _Subscription(Subscription):
    """A subscription that tells when it has lost the server."""

    def __init__(
        self, rpc: Rpc, training_id: str, cursors: Mapping[str, int] | None, lose: Callable[[FedroundError], None]
    ) -> None:
        super().__init__(rpc, training_id, resume_after=cursors)
        self._lose = lose

    def sleep(self, seconds: float) -> None:
        """Sleeps between two attempts."""
        if self._last_error is not None:
            self._lose(self._last_error)
        super().sleep(seconds)
