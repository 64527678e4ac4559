"""Encodes events once for the many subscribers that they are sent to."""

from collections import OrderedDict
from collections.abc import Hashable

from fedround.v1 import event_pb2
from fedround_server.coordinator.subscription import GoingAway, Heartbeat
from fedround_server.domain.event import Event, RoundClosed, RoundStarted
from fedround_server.services import convert

CAPACITY = 64
"""How many encoded events are kept: those encoded last."""


class EventEncoder:
    """Encodes events, with a cache by training, sequence and view."""

    def __init__(self) -> None:
        self._encoded: OrderedDict[tuple[str, int, Hashable], event_pb2.Event] = OrderedDict()

    def encode(self, event: Event | Heartbeat | GoingAway) -> event_pb2.Event:
        """Returns the message of an event; it is shared, and must not be changed."""
        if not isinstance(event, Event):
            return convert.event(event)
        if isinstance(event.payload, RoundStarted) and event.payload.config_of:
            # No other user gets it.
            return convert.event(event)
        key = event.training_id, event.sequence, view(event)
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encoded[key] = convert.event(event)
            if len(self._encoded) > CAPACITY:
                self._encoded.popitem(last=False)
        return encoded


def view(event: Event) -> Hashable:
    """Returns the part of an event that depends on its reader and on the time: the rest is as it is in the log."""
    payload = event.payload
    if isinstance(payload, RoundStarted):
        return payload.attempt, payload.deadline, payload.submitted
    if isinstance(payload, RoundClosed):
        return bool(payload.more_metrics or payload.not_finite)
    return None
