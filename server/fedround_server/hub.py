"""Wakes those who wait for something to happen. A wake-up is a hint and carries nothing: the log has the events."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

ACTOR = "actor of "


class Waiter:
    """Somebody who waits for any of some topics. Its `with` block is the time in which it hears them."""

    def __init__(self, hub: "Hub") -> None:
        """Belongs to a hub, and hears nothing yet."""
        self._hub = hub
        self._topics: set[str] = set()
        self._told: set[str] = set()
        self._woken = asyncio.Event()

    def __enter__(self) -> Self:
        """Begins to hear the topics."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops hearing."""
        for topic in self._topics:
            self._hub.remove(topic, self)

    def follow(self, topics: Iterable[str]) -> None:
        """Hears these topics too."""
        for topic in set(topics) - self._topics:
            self._topics.add(topic)
            self._hub.add(topic, self)

    def wake(self, topic: str) -> None:
        """Ends the present or the next wait."""
        self._told.add(topic)
        self._woken.set()

    async def wait(self, seconds: float) -> frozenset[str]:
        """Waits for a wake-up since the last wait.

        Returns:
            The topics that woke; none after so many seconds without.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return frozenset()
        self._woken.clear()
        told = frozenset(self._told)
        self._told.clear()
        return told


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

    def add(self, topic: str, waiter: Waiter) -> None:
        """Notes that a waiter follows a topic."""
        self._waiters.setdefault(topic, set()).add(waiter)

    def remove(self, topic: str, waiter: Waiter) -> None:
        """Forgets that a waiter follows a topic."""
        waiters = self._waiters[topic]
        waiters.discard(waiter)
        if not waiters:
            del self._waiters[topic]
