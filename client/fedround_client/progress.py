"""What participants and actors do and wait for, in words; the SDK logs it at the level INFO."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from fedround.v1.event_pb2 import Event, RoundKind, RoundStarted
from fedround.v1.round_pb2 import ROUND_STATE_PENDING, GetRoundRequest, Round
from fedround.v1.training_pb2 import TRAINING_STATE_INITIAL, GetTrainingRequest, Training, TrainingSpec
from fedround_client.clock import Clock
from fedround_client.errors import FedroundError
from fedround_client.logs import get_logger
from fedround_client.payload import Progress
from fedround_client.round_number import planned_rounds, round_text
from fedround_client.round_over import is_asynchronous
from fedround_client.rpc import Rpc

logger = get_logger(__name__)

NAMES = 5
"""How many names a message lists."""
TRANSFER_SECONDS = 2.0
"""Seconds between two messages about a transfer."""
ARRIVAL_SECONDS = 1.0
"""Seconds between two messages about updates that have arrived."""
PAUSED = "The training is paused by its actor: no further round opens until it is resumed"


def kind_name(started: RoundStarted) -> str:
    """Returns the name of the kind of a round; a number for one that this SDK does not know."""
    is_known = started.kind in RoundKind.values()
    return RoundKind.Name(started.kind).removeprefix("ROUND_KIND_") if is_known else str(started.kind)


def list_words(names: Iterable[str], total: int = 0) -> str:
    """Returns names as a phrase: "site 1, site 2 and site 3", or with "7 others" at the end.

    Args:
        names: The names.
        total: How many there are, if some of them are not known.
    """
    all_names = list(names)
    total = max(total, len(all_names))
    shown = all_names if total <= min(NAMES + 1, len(all_names)) else [*all_names[:NAMES], f"{total - NAMES} others"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def may_wait(spec: TrainingSpec) -> bool:
    """Returns whether rounds of a training may be pending, until participants are connected."""
    return bool(spec.cohort.min_available or spec.cohort.available_only)


def awaited_text(found: Round) -> str:
    """Returns what a pending round waits for, and which of its participants are not connected."""
    names = [one.name for one in found.not_connected]
    missing = list_words(names, found.num_registered - found.num_connected) if names else ""
    return f"{found.waiting_for}; not connected: {missing}" if missing else found.waiting_for


def transfer_log(clock: Clock, what: str) -> Progress | None:
    """Returns a function that logs how much of a transfer is done, or None if messages at INFO are not logged.

    Args:
        clock: Limits the messages to one in TRANSFER_SECONDS; short transfers have none.
        what: What precedes the percentage.
    """
    if not logger.isEnabledFor(logging.INFO):
        return None
    due = clock.time() + TRANSFER_SECONDS

    def report(done: int, total: int) -> None:
        nonlocal due
        if clock.time() >= due and total:
            due = clock.time() + TRANSFER_SECONDS
            logger.info("%s %d %%", what, done * 100 // total)

    return report


class WaitLog:
    """Logs how far a training is, and whom it waits for, from the events that its actor gets."""

    def __init__(self, rpc: Rpc, training_id: str) -> None:
        """Creates a log of a training; it makes calls only where messages at the level INFO are read."""
        self._rpc = rpc
        self._training_id = training_id
        self._training: Training | None = None
        self._round = ""
        # The participants whose update or report is missing: names by user id.
        self._missing: dict[str, str] = {}
        self._arrived, self._expected = 0, 0
        self._last_message = ""
        self._next_arrival = -math.inf
        self._is_paused = False
        # In an asynchronous training, a round waits for a number of updates, not for single participants.
        self._is_asynchronous = False

    def add(self, event: Event) -> None:
        """Logs what an event means."""
        if not logger.isEnabledFor(logging.INFO):
            return
        match event.WhichOneof("payload"):
            case "training_started":
                self._log_pending()
            case "round_started":
                self._begin_round(event.round_started)
            case "update_accepted":
                accepted = event.update_accepted
                self._missing.pop(accepted.participant_id, None)
                self._arrived, self._expected = accepted.updates_arrived, accepted.updates_expected
                if self._round and self._rpc.clock.time() >= self._next_arrival:
                    self._next_arrival = self._rpc.clock.time() + ARRIVAL_SECONDS
                    self._log_round()
            case "round_closed" if self._round:
                metrics = [f"{name} {value:.4g}" for name, value in sorted(event.round_closed.metrics.items())]
                result = f": {list_words(metrics)}" if metrics else ""
                self._log(f"{self._round} is done with {_count(event.round_closed.num_updates, 'submission')}{result}")
                if self._is_paused:
                    self._round = ""
                    self._log(PAUSED)
                else:
                    self._log_pending()
            case "work_not_needed" if self._round:
                released = event.work_not_needed
                self._log(f"{self._round}: {released.num_updates} of {released.num_participants} are enough")
            case "training_paused":
                self._is_paused = True
                self._log(PAUSED)
            case "training_resumed":
                self._is_paused = False
                self._log("The training is resumed by its actor")
            case "stop_requested":
                self._log("The training is stopped by its actor: it ends after this round")
            case "heartbeat" if self._is_paused and not self._round:
                self._log(PAUSED)
            case "heartbeat":
                self._log_waiting()

    def _begin_round(self, started: RoundStarted) -> None:
        training = self._get_training()
        planned = planned_rounds(training.spec) if training is not None else None
        self._round = round_text(started.round, planned).capitalize()
        self._is_asynchronous = is_asynchronous(started)
        if kind_name(started) == "EVALUATE":
            self._round += ", evaluation"
        if self._update_missing():
            self._log_round()
        else:
            self._log(self._round)

    def _log_waiting(self) -> None:
        """Logs what the training waits for after a time without an event."""
        if self._log_pending():
            return
        if self._round:
            if self._update_missing():
                self._log_round()
            return
        training = self._get_training()
        if training is not None and training.state == TRAINING_STATE_INITIAL:
            self._training = None
            self._log(f'Training "{training.spec.name}" is not started yet')

    def _log_pending(self) -> bool:
        """Logs how many participants a pending round waits for, and returns whether there is one."""
        training = self._get_training()
        if training is None or not may_wait(training.spec):
            return False
        found = self._get_round()
        if found is None or found.state != ROUND_STATE_PENDING:
            return False
        name = round_text(found.number, planned_rounds(training.spec)).capitalize()
        self._log(f"{name}: waiting for {awaited_text(found)}")
        return True

    def _log_round(self) -> None:
        if self._arrived >= self._expected:
            self._log(f"{self._round}: aggregating")
            return
        if self._is_asynchronous:
            updates = _count(self._expected, "update")
            self._log(f"{self._round}: waiting for {self._expected - self._arrived} more of {updates}")
            return
        arrived = f"{self._arrived} of {self._expected} are in; " if self._arrived else ""
        names = list_words(self._missing.values()) or "participants"
        self._log(f"{self._round}: {arrived}waiting for {names}")

    def _get_training(self) -> Training | None:
        """Returns the training; None if it cannot be read now."""
        if self._training is None:
            try:
                request = GetTrainingRequest(training_id=self._training_id)
                self._training = self._rpc.unary(self._rpc.trainings.GetTraining, request).training
            except FedroundError:
                return None
        return self._training

    def _update_missing(self) -> bool:
        """Asks the server who is missing; returns False if it does not say, for example to a participant."""
        found = self._get_round()
        if found is None:
            return False
        self._missing = {one.user_id: one.name for one in found.participants if not one.arrived}
        self._arrived, self._expected = found.updates_arrived, found.updates_expected
        return True

    def _get_round(self) -> Round | None:
        """Returns the current round; None if it cannot be read now."""
        try:
            request = GetRoundRequest(training_id=self._training_id)
            return self._rpc.unary(self._rpc.rounds.GetRound, request).round
        except FedroundError:
            return None

    def _log(self, message: str) -> None:
        if message != self._last_message:
            self._last_message = message
            logger.info("%s", message)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
