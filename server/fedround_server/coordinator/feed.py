"""Feeds: each reads the log of one training for all subscriptions to it, which would otherwise ask one by one."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from fedround_server.domain.errors import FedroundError
from fedround_server.store.queries.event_log import LogPage
from fedround_server.store.verbs.event import EventVerbs
from fedround_server.wakeups import Hub

T = TypeVar("T")

BATCH = 100
"""The maximum number of events that a subscription is given at a time."""
READERS = 1000
"""How many read the log in one transaction; the store does other work between two."""
TURN = 50
"""How many subscriptions are woken in one turn of the event loop; other calls go on between two turns."""


class Follower(Protocol):
    """A subscription that follows the log of a training."""

    def place(self, training_id: str) -> tuple[str, int] | None:
        """Returns the user as whom it reads a log and its cursor; None before it has one."""

    def offer(self, training_id: str, start: int, page: LogPage | None) -> None:
        """Receives what is new after a cursor; None if it has to read the log itself."""


class Feeds:
    """The feeds of all trainings that are followed."""

    def __init__(self, hub: Hub, events: EventVerbs) -> None:
        self._hub = hub
        self._events = events
        self._feeds: dict[str, _Feed] = {}

    def join(self, training_id: str, follower: Follower) -> None:
        """Gives a subscription what is new in a log from now on."""
        feed = self._feeds.get(training_id)
        if feed is None:
            feed = self._feeds[training_id] = _Feed(training_id, self._events)
            self._hub.add(training_id, feed)
        feed.followers[follower] = None

    def leave(self, training_id: str, follower: Follower) -> None:
        """Ends what `join` began."""
        feed = self._feeds[training_id]
        del feed.followers[follower]
        if not feed.followers:
            del self._feeds[training_id]
            self._hub.remove(training_id, feed)

    def positions(self) -> dict[str, int]:
        """Returns the sequences up to which all that follow a log have read it, by training; 0 if none has yet."""
        return {training_id: feed.last_sequence for training_id, feed in self._feeds.items()}

    def position(self, training_id: str) -> int:
        """Returns the sequence up to which all that follow a log have read it."""
        feed = self._feeds.get(training_id)
        return 0 if feed is None else feed.last_sequence

    def saw(self, training_id: str, sequence: int) -> None:
        """Records that a subscription has read a log for itself, which ended at a sequence."""
        self._feeds[training_id].saw(sequence)

    async def let_others_read(self, training_id: str) -> None:
        """Waits until all others that follow a log have been given what was new: to end a stream takes longer."""
        if (feed := self._feeds.get(training_id)) is not None:
            await feed.let_others_read()


class _Feed:
    """The feed of one training; a task runs while there is something to give."""

    __slots__ = ("_events", "_leaving", "_task", "_training_id", "_woken", "followers", "last_sequence")

    def __init__(self, training_id: str, events: EventVerbs) -> None:
        self._training_id = training_id
        self._events = events
        self._woken = False
        self._task: asyncio.Task[None] | None = None
        self._leaving: list[asyncio.Future[None]] = []
        self.last_sequence = 0
        # An ordered set.
        self.followers: dict[Follower, None] = {}

    def wake(self, _topic: str) -> None:
        """Has the log read."""
        self._woken = True
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="feed")

    def saw(self, sequence: int) -> None:
        # What one has read for itself, others have not.
        self.last_sequence = min(self.last_sequence or sequence, sequence)

    async def let_others_read(self) -> None:
        if self._task is not None:
            future = asyncio.get_running_loop().create_future()
            self._leaving.append(future)
            await future

    async def _run(self) -> None:
        try:
            while self._woken or self._leaving:
                if self._woken:
                    self._woken = False
                    everyone = list(self.followers)
                    ends: list[int] = []
                    for start in range(0, len(everyone), READERS):
                        ends += await self._tell(everyone[start : start + READERS])
                    self.last_sequence = min(ends, default=self.last_sequence)
                # Also if it was woken meanwhile: in a busy training that may go on for ever.
                leaving, self._leaving = self._leaving, []
                await _in_turns(leaving, _end)
        finally:
            self._task = None
            for future in self._leaving:
                _end(future)

    async def _tell(self, followers: Iterable[Follower]) -> list[int]:
        """Reads the log for some; returns where it ended."""
        ends: list[int] = []
        places = [(one, one.place(self._training_id)) for one in followers]
        asked = [place for _, place in places if place is not None]
        pages: Iterator[LogPage | FedroundError | None]
        try:
            pages = iter(await self._events.poll_all(self._training_id, asked, BATCH))
        except Exception:
            # Each asks for itself, then, and gets an error of its own if there is still one.
            pages = iter([None] * len(asked))

        def tell(told: tuple[Follower, tuple[str, int] | None]) -> None:
            follower, place = told
            page = None if place is None else next(pages)
            start = 0 if place is None else place[1]
            if isinstance(page, LogPage):
                ends.append(page.view.last_sequence)
            follower.offer(self._training_id, start, None if isinstance(page, FedroundError) else page)

        await _in_turns(places, tell)
        return ends


async def _in_turns(items: Iterable[T], act: Callable[[T], None]) -> None:
    """Does something with each of many items, and lets others use the event loop in between."""
    for number, item in enumerate(items, 1):
        act(item)
        if number % TURN == 0:
            await asyncio.sleep(0)


def _end(wait: "asyncio.Future[None]") -> None:
    if not wait.done():
        wait.set_result(None)
