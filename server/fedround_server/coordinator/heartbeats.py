"""Heartbeats: one timer finds the subscriptions that have been silent for long, among thousands."""

import asyncio
from collections import OrderedDict
from typing import Protocol

TICKS = 20
"""How often silent subscriptions are looked for within the time between two heartbeats."""
TURN = 50
"""How many are woken in one turn of the event loop."""


class Line(Protocol):
    """A stream to a subscriber.

    Attributes:
        last_sent: When the last message was sent, by the event loop's clock.
    """

    last_sent: float

    def wake(self) -> None:
        """Has the subscription send a heartbeat, if it still `is_due`."""


class Heartbeats:
    """Wakes the lines on which nothing was sent for some time."""

    def __init__(self, seconds: float) -> None:
        """Begins without lines.

        Args:
            seconds: The longest silence of a line, as far as the subscriber reads.
        """
        self._tick = seconds / TICKS
        # A line is found within a tick after this.
        self._silence = seconds - self._tick
        # When each is to be looked at, in this order.
        self._lines: OrderedDict[Line, float] = OrderedDict()
        self._timer: asyncio.Handle | None = None

    def sent(self, line: Line) -> None:
        """Records that a message was sent, the first one of a line or a later one."""
        loop = asyncio.get_running_loop()
        line.last_sent = loop.time()
        self._look_later(line, line.last_sent)
        if self._timer is None:
            self._timer = loop.call_later(self._tick, self._look)

    def is_due(self, line: Line) -> bool:
        """Returns whether a line needs a heartbeat."""
        return line.last_sent + self._silence <= asyncio.get_running_loop().time()

    def forget(self, line: Line) -> None:
        """Removes a line."""
        self._lines.pop(line, None)

    def _look_later(self, line: Line, now: float) -> None:
        self._lines[line] = now + self._silence
        self._lines.move_to_end(line)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, woken = loop.time(), 0
        while self._lines and woken < TURN and self._lines[line := next(iter(self._lines))] <= now:
            # Its reader may be too slow for a heartbeat.
            self._look_later(line, now)
            line.wake()
            woken += 1
        self._timer = None
        if self._lines:
            self._timer = loop.call_soon(self._look) if woken == TURN else loop.call_later(self._tick, self._look)
