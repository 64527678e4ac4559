"""How long ago an event happened, by the server's clock, which may differ from that of this machine."""

from __future__ import annotations

import math
import time

from google.protobuf.timestamp_pb2 import Timestamp

from fedround.v1.event_pb2 import Event
from fedround_client.clock import Clock


class ServerClock:
    """An upper bound of the server's clock, from the times of receipts: a request was accepted after it was sent."""

    def __init__(self, clock: Clock) -> None:
        """Knows nothing of the server's clock.

        Args:
            clock: The clock of this machine.
        """
        self._clock = clock
        # How many seconds the server's clock is ahead at most; infinite as long as that is not known.
        self._ahead = math.inf

    def learn(self, sent: float, accepted: Timestamp) -> None:
        """Learns when a request was accepted.

        Args:
            sent: When it was sent, on the clock of this machine.
            accepted: When it was accepted, on the server's.
        """
        if accepted.seconds:
            self._ahead = _seconds(accepted) - sent

    def age(self, event: Event) -> float:
        """Returns how many seconds ago an event happened at most; infinity if that is not known."""
        if not event.HasField("create_time"):
            return math.inf
        age = self._clock.time() + self._ahead - _seconds(event.create_time)
        # What seems to happen in the future: the server's clock was set since the last receipt.
        return age if age >= 0 else math.inf

    def seconds_until(self, moment: Timestamp) -> float:
        """Returns how long it is until a moment on the server's clock, at least.

        As long as nothing is known of that clock, it is taken for that of this machine.
        """
        ahead = time.time() - self._clock.time() if math.isinf(self._ahead) else self._ahead
        return _seconds(moment) - (self._clock.time() + ahead)


def _seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos * 1e-9
