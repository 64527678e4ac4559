"""Subscriptions: a cursor in the log each, and no queue."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import FieldInvalid, TokenInvalid
from fedround_server.domain.event import Event
from fedround_server.hub import Waiter
from fedround_server.store.event import Part

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

    async def follow(self, user_id: str, training_id: str | None, resume_after: Mapping[str, int], send: Send) -> None:
        """Sends a training's events, or those of all the user's trainings, until nothing more can come.

        Args:
            user_id: Who listens.
            training_id: The training; None for all of the user's.
            resume_after: For each training the last sequence seen.
            send: Where events go; it waits while the subscriber is slow.

        Raises:
            TrainingNotFound: The user never had a part in the training.
            CursorExpired: A log does not reach its cursor.
            TokenInvalid: The user was removed.
        """
        # Follow first, then read the log: what happens in between wakes the next wait.
        with self._context.hub.waiter() as waiter:
            waiter.follow([user_id])
            if training_id is None:
                subscription: _Subscription = _All(self._context, user_id, resume_after, waiter)
            else:
                subscription = _One(self._context, user_id, training_id, resume_after, waiter)
            await self._run(subscription, waiter, send)

    async def _run(self, subscription: "_Subscription", waiter: Waiter, send: Send) -> None:
        seconds = self._context.limits.heartbeat.total_seconds()
        while not await subscription.drain(send):
            if self._closing:
                await send(GoingAway(*subscription.position()))
                return
            if not await waiter.wait(seconds):
                await send(Heartbeat(*subscription.position()))
            if not await self._context.store.events.is_present(subscription.user_id):
                raise TokenInvalid


class _Subscription:
    """Cursors in logs."""

    def __init__(self, context: Context, user_id: str, resume_after: Mapping[str, int], waiter: Waiter) -> None:
        self.user_id = user_id
        self._store = context.store.events
        self._resume_after = dict(resume_after)
        self._waiter = waiter
        self._cursors: dict[str, int] = {}

    async def drain(self, send: Send) -> bool:
        """Sends what is new; tells whether nothing more can come."""
        raise NotImplementedError

    def position(self) -> tuple[str, int]:
        """Returns what a heartbeat says."""
        raise NotImplementedError

    async def _drain_part(self, part: Part, send: Send) -> None:
        cursor = self._cursors.get(part.training_id)
        if cursor is None:
            self._waiter.follow([part.training_id])
            cursor = await self._store.start(part, self.user_id, self._resume_after.get(part.training_id))
        while True:
            events, cursor = await self._store.read(part, self.user_id, cursor, BATCH)
            for event in events:
                await send(event)
            self._cursors[part.training_id] = cursor
            if len(events) < BATCH:
                return


class _One(_Subscription):
    """The log of one training."""

    def __init__(
        self, context: Context, user_id: str, training_id: str, resume_after: Mapping[str, int], waiter: Waiter
    ) -> None:
        super().__init__(context, user_id, resume_after, waiter)
        if foreign := sorted(resume_after.keys() - {training_id}):
            raise FieldInvalid("resume_after_sequence", f"{foreign[0]} is not the training that you subscribe to")
        self._training_id = training_id
        waiter.follow([training_id])

    async def drain(self, send: Send) -> bool:
        # What ends the part is in the log before the part says so: read the part first.
        part = await self._store.part(self._training_id, self.user_id)
        await self._drain_part(part, send)
        return part.ended

    def position(self) -> tuple[str, int]:
        return self._training_id, self._cursors[self._training_id]


class _All(_Subscription):
    """The logs of all trainings that the user has a part in, also later ones."""

    def __init__(self, context: Context, user_id: str, resume_after: Mapping[str, int], waiter: Waiter) -> None:
        super().__init__(context, user_id, resume_after, waiter)
        # Trainings to look at even if the user has no part in them any more: their last event is still to be sent.
        self._known = set(resume_after)
        self._ended: set[str] = set()
        self._first = True

    async def drain(self, send: Send) -> bool:
        parts = {part.training_id: part for part in await self._store.parts(self.user_id)}
        if self._first:
            over = {part.training_id for part in parts.values() if part.ended}
            self._ended |= over - self._known
            self._first = False
        for training_id in sorted((parts.keys() | self._known) - self._ended):
            part = parts.get(training_id) or await self._store.part(training_id, self.user_id)
            await self._drain_part(part, send)
            self._known.add(training_id)
            if part.ended:
                self._known.discard(training_id)
                self._ended.add(training_id)
        return False

    def position(self) -> tuple[str, int]:
        return "", 0
