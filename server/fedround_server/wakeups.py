"""Wake-ups: tell subscriptions that something has happened. A wake-up carries no data; the events are in the log."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol, Self

ACTOR = "actor of "
NEW_TRAINING = "new training"
"""The topic of the creation of trainings, of all users."""


class Listener(Protocol):
    """What follows topics."""

    def wake(self, topic: str) -> None:
        """Receives a wake-up; must return at once."""


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

    def interrupt(self) -> None:
        """Ends the present wait, or the next one, as a timeout does."""
        if self._woken is None:
            self._woken = set()
        _end(self._future)

    async def wait(self, seconds: float | None = None) -> frozenset[str]:
        """Waits for wake-ups, unless some came since the last wait; returns their topics, none after a timeout."""
        if self._woken is None:
            # An asyncio.Event with asyncio.timeout would take a kilobyte more for each of thousands of waiters.
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = None if seconds is None else loop.call_later(seconds, _end, self._future)
            try:
                await self._future
            finally:
                if timer is not None:
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


def is_for_actor(topic: str) -> bool:
    """Returns whether a topic is one that `for_actor` returns."""
    return topic.startswith(ACTOR)


def training_of(topic: str) -> str:
    """Returns the training that a topic is about."""
    return topic.removeprefix(ACTOR)


class Hub:
    """Maps topics to listeners. Topics: ids of trainings and users, what `for_actor` returns, and NEW_TRAINING."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Listener]] = {}
        # Passes topics on to other servers.
        self._relay: Callable[[tuple[str, ...]], None] | None = None

    def waiter(self) -> Waiter:
        """Returns a new waiter."""
        return Waiter(self)

    def relay(self, send: Callable[[tuple[str, ...]], None]) -> None:
        """Has the topics of all wake-ups that begin here passed on to other servers."""
        self._relay = send

    def notify(self, *topics: str) -> None:
        """Wakes all that follow one of these topics, here and at other servers."""
        self.wake(topics)
        if self._relay is not None:
            self._relay(topics)

    def wake(self, topics: Iterable[str]) -> None:
        """Wakes all here that follow one of these topics."""
        for topic in topics:
            for listener in self._listeners.get(topic, ()):
                listener.wake(topic)

    def notify_all(self) -> None:
        """Wakes all listeners here."""
        self.wake(list(self._listeners))

    def add(self, topic: str, listener: Listener) -> bool:
        """Adds a listener to a topic; returns whether that is new."""
        listeners = self._listeners.setdefault(topic, set())
        known = listener in listeners
        listeners.add(listener)
        return not known

    def remove(self, topic: str, listener: Listener) -> None:
        """Removes a listener from a topic."""
        listeners = self._listeners[topic]
        listeners.discard(listener)
        if not listeners:
            del self._listeners[topic]
