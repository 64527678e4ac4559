"""Reading the events of trainings as one sequence, however often the connection is lost in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import grpc

from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import SubscribeRequest
from fedround_client.errors import FedroundError, ServerUnavailable
from fedround_client.rpc import Rpc, Stream

SILENCE = 60.0
"""After so many seconds without even a heartbeat (one comes every 20 s), a stream is dead."""

LULL = 1.0
"""A stream that gave nothing for so many seconds, longer than what was lost takes to be sent again, had nothing."""
MOMENT = 1.0
"""For so many seconds behind a lull, what comes has just happened."""

LAST = frozenset({"training_finished", "training_failed", "training_removed"})
"""The events that end a training."""


class Subscription:
    """Iterates over the events of one training, or of all the caller's trainings, each once and in order.

    It reconnects with back-off for as long as it takes, and resumes behind the last event that it gave out. Heartbeats
    and farewells are kept to itself. About one training, it ends after the training's last event.

    Attributes:
        is_live: Whether the event that was given out last has most probably just happened: it is at most as old as the
            stream was silent before. False if it may have waited for its reader, or for the stream.
    """

    def __init__(
        self,
        rpc: Rpc,
        training_id: str = "",
        *,
        resume_after: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Prepares the subscription; iterating opens it.

        Args:
            rpc: Calls the server.
            training_id: UUID of the training; empty for all of the caller's.
            resume_after: For each training id the last sequence that is known already.
            timeout: Seconds from now after which it ends with TimeoutError; None for never.
        """
        self._rpc = rpc
        self._clock = rpc.clock
        self._training_id = training_id
        self._cursors = dict(resume_after or {})
        self._timeout = timeout
        self._ends_at = None if timeout is None else self._clock.time() + timeout
        self._last_error: FedroundError | None = None
        self.is_live = False

    def __iter__(self) -> Iterator[Event]:
        """Yields the events.

        Raises:
            TimeoutError: The timeout is over.
            FedroundError: The server refused.
        """
        for attempt in self._rpc.retrying(None, nap=self.nap):
            with attempt:
                stream = self._open()
                try:
                    for event in self._read(stream):
                        kind = event.WhichOneof("payload")
                        if kind == "going_away":
                            raise self._lost(event.going_away.message)
                        attempt.retry_state.attempt_number = 1
                        self._last_error = None
                        if self._advance(event) and kind != "heartbeat":
                            yield event
                            if self._training_id and kind in LAST:
                                return
                    if self._training_id:  # without a farewell: there is nothing more to come
                        return
                    raise self._lost("the stream ended")
                except FedroundError as error:
                    self._last_error = error
                    raise
                finally:
                    stream.cancel()

    def _open(self) -> Stream[Event]:
        request = SubscribeRequest(training_id=self._training_id, resume_after_sequence=self._cursors)
        return self._rpc.open(self._rpc.rounds.Subscribe, request)

    def _read(self, stream: Stream[Event]) -> Iterator[Event]:
        """Reads until the end, and cancels a stream that stays silent or is read past the timeout."""
        now = self._clock.time
        # A stream may begin with what happened before.
        lull_ended, is_first = -math.inf, True
        while True:
            begin = now()
            # Only the waiting is timed: how long the reader takes for an event is its own affair.
            alarm = self._clock.call_in(stream.cancel, min(SILENCE, self._remaining()))
            try:
                with self._rpc.typed_errors():
                    event = next(stream, None)
            finally:
                alarm.cancel()
            if event is None:
                return
            heard = now()
            if heard - begin >= LULL and not is_first:
                lull_ended = heard
            is_first = False
            self.is_live = heard - lull_ended < MOMENT
            yield event

    def _advance(self, event: Event) -> bool:
        """Moves the cursor; False if the event was given out before."""
        if not event.training_id:
            return True
        known = self._cursors.get(event.training_id, 0)
        self._cursors[event.training_id] = max(known, event.sequence)
        return event.sequence > known

    def _remaining(self) -> float:
        if self._ends_at is None:
            return SILENCE
        remaining = self._ends_at - self._clock.time()
        if remaining <= 0:
            why = "" if self._last_error is None else f" The last error: {self._last_error}"
            raise TimeoutError(f"What was waited for did not happen within {self._timeout:g} s.{why}")
        return remaining

    def nap(self, seconds: float) -> None:
        """Sleeps, but not past the timeout.

        Raises:
            TimeoutError: The timeout is over.
        """
        self._clock.sleep_for(min(seconds, self._remaining()))
        self._remaining()

    def _lost(self, why: str) -> FedroundError:
        message = f"The server at {self._rpc.address} ended the subscription: {why}"
        return ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", message)
