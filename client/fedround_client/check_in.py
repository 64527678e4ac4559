"""Check-ins: the events of trainings for a participant that holds no stream open."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence

from fedround.v1.event_pb2 import Event, Heartbeat
from fedround.v1.round_pb2 import CheckInRequest, CheckInResponse
from fedround_client.rpc import Rpc, duration
from fedround_client.subscription import FINAL_EVENTS


class CheckIns:
    """Iterates over the events of one training, or of all the caller's trainings, as `Subscription` does.

    It asks the server from time to time, as often as the server says. Of several rounds that have started since it
    asked last, it yields the last start only. When the server cannot be reached, it waits for as long as the server has
    said last, and a random time more or less, so that many devices do not come back at the same moment.

    Attributes:
        is_live: Whether nothing has happened in the training since the event that was yielded last.
    """

    def __init__(
        self,
        rpc: Rpc,
        training_id: str = "",
        *,
        session_id: str = "",
        heartbeats: bool = False,
        attributes: Mapping[str, str] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Prepares it; iterating asks the server.

        Args:
            rpc: Calls the server.
            training_id: UUID of the training; empty for all of the caller's.
            session_id: UUID of the program.
            heartbeats: Whether to yield a heartbeat when there is no event.
            attributes: What the participant says of itself.
            draw: Returns a random number from 0 to 1.
        """
        self._rpc = rpc
        self._training_id = training_id
        self._session_id = session_id
        self._heartbeats = heartbeats
        self._attributes = attributes or {}
        self._draw = draw
        self._cursors: dict[str, int] = {}
        # What the server has said last, in seconds; 0 before it has said anything.
        self._told = 0.0
        self.is_live = False

    @property
    def training_ids(self) -> set[str]:
        """The trainings of which it has a position."""
        return set(self._cursors)

    def __iter__(self) -> Generator[Event, None, None]:
        """Yields the events.

        Raises:
            FedroundError: The server answered with an error that is not transient.
        """
        while True:
            response = self._rpc.retrying(None, sleep=self._sleep_after_failure)(self._ask)
            retry_after = response.retry_after.ToTimedelta().total_seconds()
            # If the work takes longer, it asks again at once when it is done.
            due = self._rpc.clock.time() + retry_after
            self._cursors = dict(response.resume_after_sequence)
            if self._heartbeats and not response.events:
                yield Event(heartbeat=Heartbeat())
            for number, event in enumerate(response.events):
                later = [one for one in response.events[number + 1 :] if one.training_id == event.training_id]
                if not _is_superseded(event, later):
                    self.is_live = retry_after > 0 and not later
                    yield event
                    if self._training_id and event.WhichOneof("payload") in FINAL_EVENTS:
                        return
            if response.ended:
                return
            if retry_after:
                self._told = retry_after
                self._rpc.clock.sleep_for(max(0.0, due - self._rpc.clock.time()))

    def _ask(self) -> CheckInResponse:
        request = CheckInRequest(
            training_id=self._training_id,
            resume_after_sequence=self._cursors,
            session_id=self._session_id,
            attributes=self._attributes,
            last_retry_after=duration(self._told or None),
        )
        return self._rpc.unary(self._rpc.rounds.CheckIn, request)

    def _sleep_after_failure(self, seconds: float) -> None:
        self._rpc.clock.sleep_for(max(seconds, self._told * (0.5 + self._draw())))


def _is_superseded(event: Event, later: Sequence[Event]) -> bool:
    """Returns whether an event is the start of a round, and another one has started since."""
    return event.HasField("round_started") and any(one.HasField("round_started") for one in later)
