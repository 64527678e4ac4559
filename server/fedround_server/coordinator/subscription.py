"""Subscriptions: each has a cursor in the logs of trainings, and no queue."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Self

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.feed import BATCH, Feeds
from fedround_server.coordinator.heartbeats import Heartbeats
from fedround_server.domain.errors import CursorExpired, FieldInvalid
from fedround_server.domain.event import Event, history_of
from fedround_server.store.queries.event_log import LogPage
from fedround_server.store.queries.log_view import LogView
from fedround_server.wakeups import NEW_TRAINING, Waiter, for_actor, training_of


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing was sent for a while; training_id is empty in a subscription to all trainings."""

    training_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class GoingAway:
    """The server is draining: subscribe again."""

    training_id: str
    sequence: int


Send = Callable[[Event | Heartbeat | GoingAway], Awaitable[None]]


def check_history(start: int, view: LogView) -> None:
    """Checks that a log still has the history that a cursor belongs to.

    Raises:
        CursorExpired: It does not.
    """
    if history_of(start) != history_of(view.last_sequence):
        raise CursorExpired(
            f"resume_after_sequence {start} is from before the training {view.training_id} was restored from a backup:"
            " subscribe without it to start at the current round"
        )


class Subscriptions:
    """All open subscriptions."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.feeds = Feeds(context.hub, context.store.events)
        self._heartbeats = Heartbeats(context.limits.heartbeat.total_seconds())
        self._closing = False

    def close(self) -> None:
        """Ends all subscriptions, each with a GoingAway."""
        self._closing = True
        self._context.hub.notify_all()

    async def follow(
        self,
        user_id: str,
        training_id: str | None,
        resume_after: Mapping[str, int],
        send: Send,
        greet: Callable[[], Awaitable[None]],
        session_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        *,
        is_viewer: bool = False,
    ) -> None:
        """Sends the events of a training, or of all trainings of the user, until no event can follow.

        Args:
            user_id: The subscriber.
            training_id: The training; None for all of the user's.
            resume_after: The last sequence that the subscriber has seen, by training.
            send: Sends an event; waits while the subscriber is slow.
            greet: Tells the subscriber that it will receive all events from now on; not called after an event was sent.
            session_id: The program that takes part in rounds by this subscription; None for one that only watches.
            attributes: What the subscriber says of itself.
            is_viewer: Whether it reads all trainings of the server, as their actors do, and takes part in none.

        Raises:
            AlreadyParticipating: Another program takes part as this user.
            TrainingNotFound: The user never took part in the training.
            CursorExpired: A log ends before its cursor.
        """
        elsewhere = self._context.presence.elsewhere.sessions(user_id)
        now = self._context.clock.now()
        session = self._context.sessions.participating(user_id, session_id, training_id, now, elsewhere)
        # Follow the topics first, then read the log: what happens in between wakes the next wait.
        with session, self._context.hub.waiter() as waiter:
            subscription: _One | _All
            if training_id is not None:
                reader_id = await self._context.store.viewers.actor_of(training_id) if is_viewer else user_id
                subscription = _One(self._context, self.feeds, reader_id, training_id, resume_after, waiter)
            elif is_viewer:
                subscription = _Everything(self._context, self.feeds, user_id, resume_after, waiter)
            else:
                subscription = _All(self._context, self.feeds, user_id, resume_after, waiter)
            waiter.follow([subscription.home])
            self._context.presence.describe(user_id, attributes or {})
            with (
                subscription,
                _Line(send, greet, waiter, self._heartbeats) as line,
                self._context.presence.listening(user_id, self._context.clock.now),
            ):
                topics: frozenset[str] = frozenset()
                while not await subscription.drain(line.send, topics):
                    await line.greet()
                    if self._closing:
                        await line.send(GoingAway(*subscription.position()))
                        return
                    if self._heartbeats.is_due(line):
                        await line.send(Heartbeat(*subscription.position()))
                    topics = await waiter.wait()
                if training_id is not None:
                    await self.feeds.let_others_read(training_id)


class _Line:
    """Sends to a subscriber; a context manager, within which it has heartbeats: not every wake-up leads to an event."""

    __slots__ = ("_greet", "_greeted", "_heartbeats", "_send", "_waiter", "last_sent")

    def __init__(
        self, send: Send, greet: Callable[[], Awaitable[None]], waiter: Waiter, heartbeats: Heartbeats
    ) -> None:
        self._send = send
        self._greet = greet
        self._greeted = False
        self._heartbeats = heartbeats
        self._waiter = waiter
        self.last_sent = 0.0

    def __enter__(self) -> Self:
        self._heartbeats.sent(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeats.forget(self)

    def wake(self) -> None:
        """Has the subscription look at the log, and send a heartbeat."""
        self._waiter.interrupt()

    async def greet(self) -> None:
        """Greets the subscriber, unless a message was sent before."""
        if not self._greeted:
            self._greeted = True
            await self._greet()

    async def send(self, event: Event | Heartbeat | GoingAway) -> None:
        """Sends a message."""
        self._greeted = True
        await self._send(event)
        self._heartbeats.sent(self)


class _Subscription:
    """Cursors in logs.

    In subclasses, `drain` sends what is new since a wake-up with these topics, none without one, and returns whether no
    event will follow; `position` returns the training and the sequence of a heartbeat. `home` is the topic of what the
    subscriber can see of new trainings.
    """

    __slots__ = (
        "_admissions",
        "_cursors",
        "_feeds",
        "_followed",
        "_offered",
        "_resume_after",
        "_start_after",
        "_store",
        "_waiter",
        "home",
        "user_id",
    )

    def __init__(
        self, context: Context, feeds: Feeds, user_id: str, resume_after: Mapping[str, int], waiter: Waiter
    ) -> None:
        self.user_id = user_id
        self.home = user_id
        self._feeds = feeds
        self._followed: list[str] = []
        self._store = context.store.events
        self._admissions = context.admissions
        self._resume_after = resume_after
        # The cursor of trainings without a position; None to begin with the current round.
        self._start_after: int | None = None
        self._waiter = waiter
        self._cursors: dict[str, int] = {}
        # The last page that a feed has offered, by training, with the cursor that it follows. There is no queue: the
        # next page from the same cursor replaces it.
        self._offered: dict[str, tuple[int, LogPage]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stops following the logs of trainings."""
        for training_id in self._followed:
            self._feeds.leave(training_id, self)

    def place(self, training_id: str) -> tuple[str, int] | None:
        """Returns the user as whom it reads a log and its cursor; None before it has one."""
        cursor = self._cursors.get(training_id)
        return None if cursor is None else (self._reader(training_id), cursor)

    def offer(self, training_id: str, start: int, page: LogPage | None) -> None:
        """Receives what is new after a cursor; None if it has to read the log itself."""
        if page is not None:
            is_next = start == self._cursors[training_id]
            if not page.events and not page.view.ended:
                # Nothing of this is for the reader.
                if is_next and training_id not in self._offered:
                    self._cursors[training_id] = page.cursor
                return
            if is_next:
                self._offered[training_id] = start, page
        self._waiter.wake(training_id)

    async def _catch_up(self, training_id: str, send: Send) -> LogView:
        """Sends the new events of a training; returns the view that includes them."""
        cursor = self._cursors.get(training_id)
        start = None
        if cursor is None:
            # Once for each training: from then on there is a cursor.
            self._followed.append(training_id)
            self._feeds.join(training_id, self)
            cursor = start = self._resume_after.get(training_id, self._start_after)
        while True:
            offered = self._offered.pop(training_id, None)
            if offered is not None and offered[0] == cursor:
                page = offered[1]
            else:
                page = await self._store.poll(training_id, self._reader(training_id), cursor, BATCH)
            if start:
                check_history(start, page.view)
            if cursor == start:
                self._admissions.know(training_id, self._reader(training_id))
            self._feeds.saw(training_id, page.view.last_sequence)
            follows_more = page.view.is_actor and self._waiter.follow([for_actor(training_id)])
            # Before the events are sent: what a feed offers meanwhile follows them.
            cursor = self._cursors[training_id] = page.cursor
            for event in page.events:
                await send(event)
            # No wake-up tells of what happened for the actor alone before its topic was followed: look again.
            if len(page.events) < BATCH and not follows_more:
                return page.view

    def _reader(self, training_id: str) -> str:
        """Returns as whom the log of a training is read."""
        return self.user_id


class _One(_Subscription):
    """The log of one training."""

    __slots__ = ("_training_id",)

    def __init__(
        self,
        context: Context,
        feeds: Feeds,
        user_id: str,
        training_id: str,
        resume_after: Mapping[str, int],
        waiter: Waiter,
    ) -> None:
        super().__init__(context, feeds, user_id, resume_after, waiter)
        if foreign := sorted(resume_after.keys() - {training_id}):
            raise FieldInvalid("resume_after_sequence", f"{foreign[0]} is not the training that you subscribe to")
        self._training_id = training_id

    async def drain(self, send: Send, topics: Collection[str]) -> bool:
        return (await self._catch_up(self._training_id, send)).ended

    def position(self) -> tuple[str, int]:
        return self._training_id, self._cursors[self._training_id]


class _All(_Subscription):
    """The logs of all trainings that the user steers or takes part in, also of later ones."""

    __slots__ = ("_unfinished",)

    def __init__(
        self, context: Context, feeds: Feeds, user_id: str, resume_after: Mapping[str, int], waiter: Waiter
    ) -> None:
        super().__init__(context, feeds, user_id, resume_after, waiter)
        # Trainings to look at even if they have ended or the user has left them: their last event is still to be sent.
        self._unfinished = set(resume_after)

    async def drain(self, send: Send, topics: Collection[str]) -> bool:
        if topics and self.home not in topics:
            for training_id in {training_of(topic) for topic in topics}:
                self._mark(await self._catch_up(training_id, send))
        else:
            for view in await self._views({training_of(topic) for topic in topics if topic != self.home}):
                is_new = self._cursors.get(view.training_id, -1) < view.last_sequence
                self._mark(await self._catch_up(view.training_id, send) if is_new else view)
        # Trainings that come from now on are read from their beginning: the subscriber has missed nothing before.
        self._start_after = 0
        return False

    def position(self) -> tuple[str, int]:
        return "", 0

    def _mark(self, view: LogView) -> None:
        if view.ended:
            # Its topics are still followed: the training may yet be removed.
            self._unfinished.discard(view.training_id)
        else:
            self._unfinished.add(view.training_id)

    async def _views(self, woken: Collection[str]) -> list[LogView]:
        """Returns the views of all trainings in which something may have happened."""
        found = await self._store.open_views(self.user_id)
        rest = self._unfinished.union(woken) - {view.training_id for view in found}
        return [*found, *(await self._store.views(self.user_id, rest) if rest else ())]


class _Everything(_All):
    """The logs of all trainings of the server, as their actors read them, also of later ones."""

    __slots__ = ("_actors", "_viewers")

    def __init__(
        self, context: Context, feeds: Feeds, user_id: str, resume_after: Mapping[str, int], waiter: Waiter
    ) -> None:
        super().__init__(context, feeds, user_id, resume_after, waiter)
        self.home = NEW_TRAINING
        self._viewers = context.store.viewers
        self._actors: dict[str, str] = {}

    def _reader(self, training_id: str) -> str:
        return self._actors[training_id]

    async def _views(self, woken: Collection[str]) -> list[LogView]:
        found = await self._viewers.open_views()
        rest = self._unfinished.union(woken) - {view.training_id for _, view in found}
        found += await self._viewers.views(rest) if rest else ()
        self._actors.update((view.training_id, actor_id) for actor_id, view in found)
        return [view for _, view in found]
