"""Subscriptions: the events of trainings as one sequence, across lost connections."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator, Mapping
from functools import partial

from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import SubscribeRequest
from fedround_client.errors import CursorExpired, FedroundError
from fedround_client.rpc import Rpc, Stream
from fedround_client.silence import SILENCE_TIMEOUT

IDLE_SECONDS = 1.0
"""After this many seconds without an event a stream has no backlog: TCP resends lost packets sooner than that."""
LIVE_SECONDS = 1.0
"""Events within this many seconds after an idle phase are live."""

INLINE_MODEL_BYTES = 1 << 20
"""The largest model in bytes that a participant takes with the start of a round: the most that a server sends."""

FINAL_EVENTS = frozenset({"training_finished", "training_failed", "training_removed"})
"""The events that end a training."""


class Subscription:
    """Iterates over the events of one training, or of all the caller's trainings, each once and in order.

    It reconnects with back-off without a limit, and resumes behind the last event that it yielded. It does not yield
    going_away, and heartbeats only if they are asked for. A subscription to one training ends after the training's
    final event.

    Attributes:
        is_connected: Whether the server has sent something since the last error.
        is_live: Whether the event that was yielded last has most probably just happened. False if it may have waited
            in a buffer, for the caller or for the connection.
    """

    def __init__(
        self,
        rpc: Rpc,
        training_id: str = "",
        *,
        resume_after: Mapping[str, int] | None = None,
        timeout: float | None = None,
        session_id: str = "",
        heartbeats: bool = False,
        attributes: Mapping[str, str] | None = None,
        begin_again: bool = False,
    ) -> None:
        """Prepares the subscription; iterating opens it.

        Args:
            rpc: Calls the server.
            training_id: UUID of the training; empty for all of the caller's.
            resume_after: The sequence of the last known event, by training id.
            session_id: UUID of the program, if it takes part in rounds by this subscription. It then gets small models
                with the starts of rounds, unless its files are compressed.
            timeout: Seconds from now after which it raises TimeoutError; None for no limit.
            heartbeats: Whether to yield heartbeats, which the server sends while there is no event.
            attributes: What a participant says of itself.
            begin_again: Begin again at the current round if the server has forgotten the last event that was yielded,
                since it was restored from a backup.
        """
        self._rpc = rpc
        self._clock = rpc.clock
        self._training_id = training_id
        self._cursors = dict(resume_after or {})
        self._session_id = session_id
        self._attributes = attributes or {}
        self._begin_again = begin_again
        self._timeout = timeout
        self._ends_at = None if timeout is None else self._clock.time() + timeout
        self._last_error: FedroundError | None = None
        self._heartbeats = heartbeats
        self.is_live = False
        self.is_connected = False

    @property
    def training_ids(self) -> set[str]:
        """The trainings of which it has a position."""
        return set(self._cursors)

    def __iter__(self) -> Generator[Event, None, None]:
        """Yields the events.

        Raises:
            TimeoutError: The timeout has expired.
            FedroundError: The server answered with an error that is not transient.
        """
        for attempt in self._rpc.retrying(None, sleep=self.sleep):
            with attempt:
                stream = self._open()
                try:
                    for event in self._read(stream):
                        kind = event.WhichOneof("payload")
                        if kind == "going_away":
                            raise self._connection_lost(event.going_away.message, stream)
                        attempt.retry_state.attempt_number = 1
                        self._last_error = None
                        # Also of a heartbeat, which carries the position reached.
                        is_new = self._advance(event)
                        if self._heartbeats if kind == "heartbeat" else is_new:
                            yield event
                            if self._training_id and kind in FINAL_EVENTS:
                                return
                    if self._training_id:  # the training has ended, and has no more events
                        return
                    raise self._connection_lost("the stream ended", stream)
                except CursorExpired as error:
                    if not (self._begin_again and self._cursors):
                        raise
                    self._cursors.clear()
                    raise self._connection_lost(str(error)) from error
                except FedroundError as error:
                    self._last_error, self.is_connected = error, False
                    raise
                finally:
                    stream.cancel()

    def _open(self) -> Stream[Event]:
        request = SubscribeRequest(
            training_id=self._training_id,
            resume_after_sequence=self._cursors,
            session_id=self._session_id,
            attributes=self._attributes,
            # An event is not compressed.
            inline_model_bytes=0 if not self._session_id or self._rpc.compression else INLINE_MODEL_BYTES,
        )
        return self._rpc.open(self._rpc.rounds.Subscribe, request)

    def _read(self, stream: Stream[Event]) -> Iterator[Event]:
        """Yields the events of a stream; cancels it when it is silent for too long, or at the timeout."""
        now = self._clock.time
        # A stream may begin with old events, so what precedes its first event is not an idle phase.
        idle_until, is_first = -math.inf, True
        while True:
            begin = now()
            # The time that the caller needs for an event is not silence.
            limit, is_silent = min(SILENCE_TIMEOUT, self._remaining()), threading.Event()
            alarm = self._clock.call_in(partial(_cancel, stream, is_silent), limit)
            try:
                with self._rpc.typed_errors():
                    event = next(stream, None)
            except FedroundError:
                if is_silent.is_set():
                    self._remaining()
                    # A heartbeat comes every 20 s.
                    raise self._rpc.unavailable(f"sent nothing for {limit:.0f} s", stream) from None
                raise
            finally:
                alarm.cancel()
            if event is None:
                return
            received, self.is_connected = now(), True
            if received - begin >= IDLE_SECONDS and not is_first:
                idle_until = received
            is_first = False
            self.is_live = received - idle_until < LIVE_SECONDS
            yield event

    def _advance(self, event: Event) -> bool:
        """Moves the cursor; returns False if the event was yielded before."""
        if not event.training_id:
            return True
        known = self._cursors.get(event.training_id, 0)
        self._cursors[event.training_id] = max(known, event.sequence)
        return event.sequence > known

    def _remaining(self) -> float:
        if self._ends_at is None:
            return SILENCE_TIMEOUT
        remaining = self._ends_at - self._clock.time()
        if remaining <= 0:
            why = "" if self._last_error is None else f" The last error: {self._last_error}"
            raise TimeoutError(f"The training did not end within {self._timeout:g} s.{why}")
        return remaining

    def sleep(self, seconds: float) -> None:
        """Sleeps, but not past the timeout.

        Raises:
            TimeoutError: The timeout has expired.
        """
        self._clock.sleep_for(min(seconds, self._remaining()))
        self._remaining()

    def _connection_lost(self, why: str, stream: Stream[Event] | None = None) -> FedroundError:
        return self._rpc.unavailable(f"ended the subscription: {why}", stream)


def _cancel(stream: Stream[Event], is_silent: threading.Event) -> None:
    is_silent.set()
    stream.cancel()
