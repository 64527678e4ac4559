"""Wakes those who wait for something to happen. A wake-up is a hint and carries nothing: the log has the events."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

ACTOR = "actor of "


class Waiter:
    """Somebody who waits for any of some topics. Its `with` block is the time in which it hears them."""

    __slots__ = ("_hub", "_told", "_topics", "_woken")

    def __init__(self, hub: "Hub") -> None:
        """Belongs to a hub, and hears nothing yet."""
        self._hub = hub
        self._topics: list[str] = []
        # No set while there is nothing in it: most wait most of the time.
        self._told: set[str] | None = None
        self._woken: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        """Begins to hear the topics."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops hearing."""
        for topic in self._topics:
            self._hub.remove(topic, self)

    def follow(self, topics: Iterable[str]) -> bool:
        """Adds topics; returns whether one of them is new."""
        new = [topic for topic in topics if self._hub.add(topic, self)]
        self._topics += new
        return bool(new)

    def wake(self, topic: str) -> None:
        """Ends the present or the next wait."""
        if self._told is None:
            self._told = set()
        self._told.add(topic)
        _end(self._woken)

    async def wait(self, seconds: float) -> frozenset[str]:
        """Waits for a wake-up since the last wait.

        Returns:
            The topics that woke; none after so many seconds without.
        """
        if self._told is None:
            # An event and a timeout do the same and take a kilobyte, of each of thousands of waiters.
            loop = asyncio.get_running_loop()
            self._woken = loop.create_future()
            timer = loop.call_later(seconds, _end, self._woken)
            try:
                await self._woken
            finally:
                timer.cancel()
                self._woken = None
        told, self._told = self._told, None
        return frozenset(told or ())


def _end(wait: "asyncio.Future[None] | None") -> None:
    if wait is not None and not wait.done():
        wait.set_result(None)


def for_actor(training_id: str) -> str:
    """Returns the topic of what happens in a training and its actor alone can see."""
    return ACTOR + training_id


def training_of(topic: str) -> str:
    """Returns the training that a topic is about."""
    return topic.removeprefix(ACTOR)


class Hub:
    """Who waits for what. Topics are ids of trainings (also as `for_actor` makes them) and of users."""

    def __init__(self) -> None:
        """Begins empty."""
        self._waiters: dict[str, set[Waiter]] = {}

    def waiter(self) -> Waiter:
        """Makes a waiter."""
        return Waiter(self)

    def notify(self, *topics: str) -> None:
        """Wakes all who follow one of these topics."""
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                waiter.wake(topic)

    def notify_all(self) -> None:
        """Wakes everybody."""
        self.notify(*self._waiters)

    def add(self, topic: str, waiter: Waiter) -> bool:
        """Notes that a waiter follows a topic; tells whether it did not yet."""
        waiters = self._waiters.setdefault(topic, set())
        known = waiter in waiters
        waiters.add(waiter)
        return not known

    def remove(self, topic: str, waiter: Waiter) -> None:
        """Forgets that a waiter follows a topic."""
        waiters = self._waiters[topic]
        waiters.discard(waiter)
        if not waiters:
            del self._waiters[topic]
