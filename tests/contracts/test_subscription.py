"""What wakes a subscription, and which verbs it then calls; on both databases."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.world import World
from fedround_server.coordinator import Context, Coordinator
from fedround_server.coordinator.subscription import Heartbeat, Subscriptions
from fedround_server.domain.errors import CursorExpired
from fedround_server.domain.event import (
    Event,
    RoundStarted,
    TrainingRemoved,
    TrainingStarted,
    UpdateAccepted,
)
from fedround_server.domain.limits import Limits
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.wakeups import NEW_TRAINING, Hub, for_actor

NOTHING: Any = None


class Verbs:
    """The store's verbs of a noun; records each call."""

    def __init__(self, verbs: Any, calls: list[str]) -> None:
        self.calls = calls
        self._verbs = verbs

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return getattr(self._verbs, name)(*arguments)

        return call


class Listener:
    """A subscription, and what came over it."""

    def __init__(
        self, store: Store, hub: Hub, user: str, training_id: str | None, heartbeat: timedelta, *, is_viewer: bool
    ) -> None:
        self.verbs = Verbs(store.events, [])
        store_of_verbs: Any = SimpleNamespace(events=self.verbs, viewers=Verbs(store.viewers, self.verbs.calls))
        context = Context(store_of_verbs, NOTHING, NOTHING, hub, NOTHING, Limits(heartbeat=heartbeat))
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        subscriptions = Subscriptions(context)
        following = subscriptions.follow(user, training_id, {}, self.sent.put, self._greet, is_viewer=is_viewer)
        self.task = asyncio.create_task(following)

    async def _greet(self) -> None:
        await self.sent.put("greeting")

    async def next(self) -> Any:
        """The payload of the next event."""
        event = await self.sent.get()
        return event.payload if isinstance(event, Event) else event


Listen = Callable[..., Listener]


async def waiting(hub: Hub, user: str) -> None:
    """Returns when the user's subscription waits for a wake-up."""
    (waiter,) = hub._listeners[user]
    while waiter._future is None:
        await asyncio.sleep(0.001)


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def listen(store: Store, hub: Hub) -> AsyncIterator[Listen]:
    made: list[Listener] = []

    def make(
        user: str,
        training_id: str | None = None,
        heartbeat: timedelta = timedelta(hours=1),
        *,
        is_viewer: bool = False,
    ) -> Listener:
        made.append(Listener(store, hub, user, training_id, heartbeat, is_viewer=is_viewer))
        return made[-1]

    yield make
    for one in made:
        one.task.cancel()
        with suppress(asyncio.CancelledError):
            await one.task


@pytest.mark.parametrize("everything", [True, False])
async def test_what_only_the_actor_sees_wakes_only_the_actor(
    store: Store, world: World, hub: Hub, listen: Listen, everything: bool
) -> None:
    actor, clients, training = await world.running(3, metric_names=("loss",))
    for client in clients:
        await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    topic = None if everything else training.training_id
    steering, taking_part = listen(actor, topic), listen(clients[0], topic)
    for one in (steering, taking_part):
        assert isinstance(await one.next(), RoundStarted)
    before = list(taking_part.verbs.calls)
    submissions = Coordinator(Context(store, NOTHING, NOTHING, hub, NOTHING)).submissions
    for client in clients[:2]:
        await submissions.submit_metrics(training.training_id, 1, client, 1, {"loss": 0.5})
        assert isinstance(await steering.next(), UpdateAccepted)
    assert taking_part.verbs.calls == before


async def test_silence_is_what_is_not_sent(world: World, hub: Hub, listen: Listen) -> None:
    _, clients, training = await world.running(2)
    listener = listen(clients[0], training.training_id, timedelta(milliseconds=50))
    assert isinstance(await listener.next(), RoundStarted)
    # Woken all the time, by what is for others.
    while listener.sent.empty():
        hub.notify(training.training_id)
        await asyncio.sleep(0)
    assert await listener.next() == Heartbeat(training.training_id, 2)


async def test_a_wake_up_is_about_one_training_however_many_there_are(
    store: Store, world: World, hub: Hub, listen: Listen
) -> None:
    actor, clients, first = await world.running(2)
    trainings = [first]
    for _ in range(4):
        made = await world.training(actor, clients)
        trainings.append(await store.trainings.start(made.training_id, actor, None, world.now))
    listener = listen(actor)
    for _ in trainings:
        assert isinstance(await listener.next(), RoundStarted)
    # An actor's subscription looks twice at first.
    await waiting(hub, actor)
    listener.verbs.calls.clear()
    await world.submit(first.training_id, 0, clients[0])
    hub.notify(for_actor(first.training_id))
    assert isinstance(await listener.next(), UpdateAccepted)
    assert listener.verbs.calls == ["poll"]
    listener.verbs.calls.clear()
    # Whatever may have happened: all are looked at, and those with new events are read.
    await world.submit(first.training_id, 0, clients[1])
    hub.notify(actor)
    assert isinstance(await listener.next(), UpdateAccepted)
    assert listener.verbs.calls == ["open_views", "poll"]


async def test_a_viewer_reads_once_for_a_wake_up_however_many_trainings_there_are(
    store: Store, world: World, hub: Hub, listen: Listen
) -> None:
    running = [await world.running(2) for _ in range(3)]
    listener = listen(await world.user(Role.VIEWER), is_viewer=True)
    for _ in running:
        assert isinstance(await listener.next(), RoundStarted)
    await waiting(hub, NEW_TRAINING)
    listener.verbs.calls.clear()
    _, clients, first = running[0]
    await world.submit(first.training_id, 0, clients[0])
    hub.notify(for_actor(first.training_id))
    assert isinstance(await listener.next(), UpdateAccepted)
    assert listener.verbs.calls == ["poll"]
    listener.verbs.calls.clear()
    later, _, made = await world.running(1)
    hub.notify(later, NEW_TRAINING)
    assert isinstance(await listener.next(), TrainingStarted)
    assert isinstance(await listener.next(), RoundStarted)
    assert listener.verbs.calls[0] == "open_views"
    # What happens in it from now on wakes the viewer, too.
    await waiting(hub, NEW_TRAINING)
    await store.trainings.remove(made.training_id, later, force=True, now=world.now)
    hub.notify(made.training_id)
    assert isinstance(await listener.next(), TrainingRemoved)


@pytest.mark.parametrize("everything", [True, False])
async def test_who_is_greeted_hears_all_from_then_on(
    store: Store, world: World, hub: Hub, listen: Listen, everything: bool
) -> None:
    actor, client = await world.user(Role.ACTOR), await world.user()
    training = await world.training(actor, [client])
    listener = listen(client, None if everything else training.training_id)
    assert await listener.next() == "greeting"
    assert listener.verbs.calls[-1] == "poll"
    await store.trainings.start(training.training_id, actor, None, world.now)
    hub.notify(training.training_id)
    assert isinstance(await listener.next(), TrainingStarted)
    assert isinstance(await listener.next(), RoundStarted)


async def test_all_events_of_a_later_training_are_sent(store: Store, world: World, hub: Hub, listen: Listen) -> None:
    _, clients, _ = await world.running(1)
    listener = listen(clients[0])
    assert isinstance(await listener.next(), RoundStarted)
    actor = await world.user(Role.ACTOR)
    later = await world.training(actor, clients)
    # Started before any read.
    await store.trainings.start(later.training_id, actor, None, world.now)
    hub.notify(clients[0])
    assert isinstance(await listener.next(), TrainingStarted)
    assert isinstance(await listener.next(), RoundStarted)


@pytest.mark.parametrize("resume_after", [1, 2, 9, (1 << 32) - 1])
async def test_a_cursor_from_before_a_restore_is_rejected_however_far_the_log_goes(
    store: Store, world: World, hub: Hub, resume_after: int
) -> None:
    _, clients, training = await world.running(2)
    await store.backups.restored(world.now)
    await world.submit(training.training_id, 0, clients[0])
    context = Context(store, NOTHING, NOTHING, hub, NOTHING)
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    async def greet() -> None:
        sent.append("greeting")

    for topic in (training.training_id, None):
        cursors = {training.training_id: resume_after}
        with pytest.raises(CursorExpired, match="subscribe without it to start at the current round"):
            await Subscriptions(context).follow(clients[1], topic, cursors, send, greet)
    assert sent == []


async def test_a_log_is_read_from_its_beginning_to_its_end_after_a_restore(
    store: Store, world: World, listen: Listen
) -> None:
    actor, clients, training = await world.running(2)
    await store.backups.restored(world.now)
    await world.submit(training.training_id, 0, clients[0])
    page = await store.events.poll(training.training_id, actor, 0, 100)
    assert [event.sequence for event in page.events] == [1, 2, (1 << 32) + 1]
    listener = listen(clients[1], training.training_id)
    started = await listener.next()
    assert (isinstance(started, RoundStarted), started.submitted) == (True, False)
    # A second restore begins a third history; trainings that have ended have no further one.
    await store.backups.restored(None)
    await world.submit(training.training_id, 0, clients[1])
    last = (await store.events.poll(training.training_id, actor, 0, 100)).events[-1]
    assert last.sequence >> 32 == 2
