"""Subscriptions: a cursor in the log each, and no queue."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.event import Event
from fedround_server.store.queries.event_log import Part
from fedround_server.wakeups import Waiter, for_actor, training_of

BATCH = 100


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing happened for a while; training_id is empty in a subscription to all trainings."""

    training_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class GoingAway:
    """The server is going down."""

    training_id: str
    sequence: int


Send = Callable[[Event | Heartbeat | GoingAway], Awaitable[None]]


class Subscriptions:
    """Who listens, and whether the server is about to leave."""

    def __init__(self, context: Context) -> None:
        """Begins with nobody listening."""
        self._context = context
        self._closing = False

    def close(self) -> None:
        """Has every subscription say goodbye and end."""
        self._closing = True
        self._context.hub.notify_all()

    async def follow(
        self,
        user_id: str,
        training_id: str | None,
        resume_after: Mapping[str, int],
        send: Send,
        greet: Callable[[], Awaitable[None]],
    ) -> None:
        """Sends a training's events, or those of all the user's trainings, until nothing more can come.

        Args:
            user_id: Who listens.
            training_id: The training; None for all of the user's.
            resume_after: For each training the last sequence seen.
            send: Where events go; it waits while the subscriber is slow.
            greet: Tells the subscriber that it hears of everything from now on; not called if it was sent something.

        Raises:
            TrainingNotFound: The user never had a part in the training.
            CursorExpired: A log does not reach its cursor.
        """
        # Follow first, then read the log: what happens in between wakes the next wait.
        with self._context.hub.waiter() as waiter:
            waiter.follow([user_id])
            if training_id is None:
                subscription: _Subscription = _All(self._context, user_id, resume_after, waiter)
            else:
                subscription = _One(self._context, user_id, training_id, resume_after, waiter)
            line = _Line(send, greet)
            seconds = self._context.limits.heartbeat.total_seconds()
            topics: frozenset[str] = frozenset()
            with self._context.presence.listening(user_id, self._context.clock.now):
                while not await subscription.drain(line.send, topics):
                    await line.greet()
                    if self._closing:
                        await line.send(GoingAway(*subscription.position()))
                        return
                    if line.silence >= seconds:
                        await line.send(Heartbeat(*subscription.position()))
                    topics = await waiter.wait(seconds - line.silence)


class _Line:
    """The way to a subscriber, and how long nothing went over it: not all that wakes a subscription is for it."""

    __slots__ = ("_clock", "_greet", "_greeted", "_send", "_spoke")

    def __init__(self, send: Send, greet: Callable[[], Awaitable[None]]) -> None:
        """Begins now."""
        self._send = send
        self._greet = greet
        self._greeted = False
        self._clock = asyncio.get_running_loop().time
        self._spoke = self._clock()

    @property
    def silence(self) -> float:
        """Seconds since something was sent."""
        return self._clock() - self._spoke

    async def greet(self) -> None:
        """Greets, unless something was sent."""
        if not self._greeted:
            self._greeted = True
            await self._greet()

    async def send(self, event: Event | Heartbeat | GoingAway) -> None:
        """Sends something."""
        self._greeted = True
        await self._send(event)
        self._spoke = self._clock()


class _Subscription:
    """Cursors in logs."""

    __slots__ = ("_cursors", "_resume_after", "_start_after", "_store", "_waiter", "user_id")

    def __init__(self, context: Context, user_id: str, resume_after: Mapping[str, int], waiter: Waiter) -> None:
        self.user_id = user_id
        self._store = context.store.events
        self._resume_after = resume_after
        # Where trainings without a cursor start; None for the current round.
        self._start_after: int | None = None
        self._waiter = waiter
        self._cursors: dict[str, int] = {}

    async def drain(self, send: Send, topics: Collection[str]) -> bool:
        """Sends what is new, after a wake-up or (without topics) of itself; tells whether nothing more can come."""
        raise NotImplementedError

    def position(self) -> tuple[str, int]:
        """Returns what a heartbeat says."""
        raise NotImplementedError

    async def _drain_part(self, part: Part, send: Send) -> None:
        cursor = self._cursors.get(part.training_id)
        if cursor is None:
            self._waiter.follow([part.training_id, *([for_actor(part.training_id)] if part.is_actor else [])])
            resume_after = self._resume_after.get(part.training_id, self._start_after)
            cursor = await self._store.start(part, self.user_id, resume_after)
        elif cursor >= part.last_sequence:
            return
        events, cursor = await self._store.read(part, self.user_id, cursor, BATCH)
        await self._pass_on(part, events, cursor, send)

    async def _pass_on(self, part: Part, events: Sequence[Event], cursor: int, send: Send) -> None:
        """Sends what was read of a part up to a cursor, and all that lies behind."""
        while True:
            for event in events:
                await send(event)
            self._cursors[part.training_id] = cursor
            if len(events) < BATCH:
                return
            events, cursor = await self._store.read(part, self.user_id, cursor, BATCH)


class _One(_Subscription):
    """The log of one training."""

    __slots__ = ("_training_id",)

    def __init__(
        self, context: Context, user_id: str, training_id: str, resume_after: Mapping[str, int], waiter: Waiter
    ) -> None:
        super().__init__(context, user_id, resume_after, waiter)
        if foreign := sorted(resume_after.keys() - {training_id}):
            raise FieldInvalid("resume_after_sequence", f"{foreign[0]} is not the training that you subscribe to")
        self._training_id = training_id
        waiter.follow([training_id])

    async def drain(self, send: Send, topics: Collection[str]) -> bool:
        cursor = self._cursors.get(self._training_id)
        if cursor is None:
            # What ends the part is in the log before the part says so: read the part first.
            part = await self._store.part(self._training_id, self.user_id)
            await self._drain_part(part, send)
        else:
            part, events, cursor = await self._store.news(self._training_id, self.user_id, cursor, BATCH)
            await self._pass_on(part, events, cursor, send)
        return part.ended

    def position(self) -> tuple[str, int]:
        return self._training_id, self._cursors[self._training_id]


class _All(_Subscription):
    """The logs of all trainings that the user has a part in, also later ones."""

    __slots__ = ("_unfinished",)

    def __init__(self, context: Context, user_id: str, resume_after: Mapping[str, int], waiter: Waiter) -> None:
        super().__init__(context, user_id, resume_after, waiter)
        # Trainings to look at even if they are over or the user has left them: their last event is still to be sent.
        self._unfinished = set(resume_after)

    async def drain(self, send: Send, topics: Collection[str]) -> bool:
        for part in await self._look(topics):
            await self._drain_part(part, send)
            if part.ended:
                # Its topics go on to be heard: it may be removed yet.
                self._unfinished.discard(part.training_id)
            else:
                self._unfinished.add(part.training_id)
        # The user's part in whatever comes from now on is new: none of it was missed before.
        self._start_after = 0
        return False

    def position(self) -> tuple[str, int]:
        return "", 0

    async def _look(self, topics: Collection[str]) -> list[Part]:
        """Returns the parts that something may have happened in."""
        if topics and self.user_id not in topics:
            return await self._store.parts(self.user_id, {training_of(topic) for topic in topics})
        found = await self._store.open_parts(self.user_id)
        woken = {training_of(topic) for topic in topics if topic != self.user_id}
        rest = (self._unfinished | woken) - {part.training_id for part in found}
        return [*found, *(await self._store.parts(self.user_id, rest) if rest else ())]
