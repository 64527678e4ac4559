"""Wake-ups: tell subscriptions that something has happened. A wake-up carries no data; the events are in the log."""

import asyncio
from collections.abc import Iterable
from typing import Self

ACTOR = "actor of "
NEW_TRAINING = "new training"
"""The topic of the creation of trainings, of all users."""


class Waiter:
    """Waits for wake-ups of some topics. A context manager: it follows its topics within its `with` block."""

    __slots__ = ("_future", "_hub", "_topics", "_woken")

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self._topics: list[str] = []
        # None instead of an empty set, to save memory: there are thousands of waiters, and most have no wake-up.
        self._woken: set[str] | None = None
        self._future: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stops following all topics."""
        for topic in self._topics:
            self._hub.remove(topic, self)

    def follow(self, topics: Iterable[str]) -> bool:
        """Adds topics; returns whether one of them is new."""
        new = [topic for topic in topics if self._hub.add(topic, self)]
        self._topics += new
        return bool(new)

    def wake(self, topic: str) -> None:
        """Ends the present wait, or the next one."""
        if self._woken is None:
            self._woken = set()
        self._woken.add(topic)
        _end(self._future)

    async def wait(self, seconds: float) -> frozenset[str]:
        """Waits for wake-ups, unless some came since the last wait; returns their topics, none after a timeout."""
        if self._woken is None:
            # An asyncio.Event with asyncio.timeout would take a kilobyte more for each of thousands of waiters.
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = loop.call_later(seconds, _end, self._future)
            try:
                await self._future
            finally:
                timer.cancel()
                self._future = None
        woken, self._woken = self._woken, None
        return frozenset(woken or ())


def _end(wait: "asyncio.Future[None] | None") -> None:
    if wait is not None and not wait.done():
        wait.set_result(None)


def for_actor(training_id: str) -> str:
    """Returns the topic of the events of a training that only its actor can see."""
    return ACTOR + training_id


def training_of(topic: str) -> str:
    """Returns the training that a topic is about."""
    return topic.removeprefix(ACTOR)


class Hub:
    """Maps topics to waiters. Topics: ids of trainings and users, what `for_actor` returns, and NEW_TRAINING."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[Waiter]] = {}

    def waiter(self) -> Waiter:
        """Returns a new waiter."""
        return Waiter(self)

    def notify(self, *topics: str) -> None:
        """Wakes all waiters that follow one of these topics."""
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                waiter.wake(topic)

    def notify_all(self) -> None:
        """Wakes all waiters."""
        self.notify(*self._waiters)

    def add(self, topic: str, waiter: Waiter) -> bool:
        """Adds a waiter to a topic; returns whether that is new."""
        waiters = self._waiters.setdefault(topic, set())
        known = waiter in waiters
        waiters.add(waiter)
        return not known

    def remove(self, topic: str, waiter: Waiter) -> None:
        """Removes a waiter from a topic."""
        waiters = self._waiters[topic]
        waiters.discard(waiter)
        if not waiters:
            del self._waiters[topic]
