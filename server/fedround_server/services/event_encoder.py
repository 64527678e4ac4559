"""Encodes events once for the many subscribers that they are sent to."""

from collections import OrderedDict
from collections.abc import Hashable

from fedround_server.coordinator.inline_models import InlineModel
from fedround_server.coordinator.subscription import GoingAway, Heartbeat
from fedround_server.domain.event import Event, RoundClosed, RoundStarted
from fedround_server.services import convert

CAPACITY = 64
"""How many encoded events are kept: those encoded last."""


class EventEncoder:
    """Encodes events, with a cache by training, sequence and view."""

    def __init__(self) -> None:
        self._encoded: OrderedDict[Hashable, bytes] = OrderedDict()

    def encode(self, event: Event | Heartbeat | GoingAway, model: InlineModel | None = None) -> bytes:
        """Returns an event as it is sent: the same object for all that are sent the same.

        Args:
            event: The event.
            model: The file that the start of a round carries.
        """
        if not isinstance(event, Event) or (isinstance(event.payload, RoundStarted) and event.payload.config_of):
            # No other user gets it.
            return _encode(event, model)
        key = event.training_id, event.sequence, view(event)
        if model is not None:
            # Kept with the file, which is dropped when no subscriber is left for it.
            if model.message[0] != key:
                model.message = key, _encode(event, model)
            return model.message[1]
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encoded[key] = _encode(event)
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


def _encode(event: Event | Heartbeat | GoingAway, model: InlineModel | None = None) -> bytes:
    message = convert.event(event)
    if model is not None:
        message.round_started.inline_model = model.file
    return message.SerializeToString()
