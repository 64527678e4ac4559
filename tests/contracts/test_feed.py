"""One read of a training's log serves all subscriptions to it; on both databases."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from contracts.world import World
from fedround_server.coordinator import Context, feed
from fedround_server.coordinator.subscription import Subscriptions
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.event import Event, RoundClosed, RoundStarted, TrainingRemoved
from fedround_server.domain.policy import RoundPolicy
from fedround_server.store import Store
from fedround_server.wakeups import Hub

NOTHING: Any = None
MANY = 120


class Reader:
    """A subscription, and what came over it; it reads only while it is open."""

    def __init__(self, subscriptions: Subscriptions, user: str, training_id: str | None) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.sent: asyncio.Queue[Event] = asyncio.Queue()
        self.task = asyncio.create_task(subscriptions.follow(user, training_id, {}, self._send, self._greet))

    async def next(self) -> Any:
        """The payload of the next event."""
        return (await self.sent.get()).payload

    async def _send(self, event: Any) -> None:
        await self.open.wait()
        self.sent.put_nowait(event)

    async def _greet(self) -> None:
        pass


Read = Callable[..., list[Reader]]


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def read(store: Store, hub: Hub) -> AsyncIterator[Read]:
    subscriptions = Subscriptions(Context(store, NOTHING, NOTHING, hub, NOTHING))
    made: list[Reader] = []

    def make(users: list[str], training_id: str | None) -> list[Reader]:
        some = [Reader(subscriptions, user, training_id) for user in users]
        made.extend(some)
        return some

    yield make
    for one in made:
        one.task.cancel()
        with suppress(asyncio.CancelledError):
            await one.task


async def begun(readers: list[Reader]) -> None:
    """Returns when all have the start of the current round, and wait."""
    for one in readers:
        assert isinstance(await one.next(), RoundStarted)
    await asyncio.sleep(0)


@pytest.fixture
async def many(store: Store, world: World, read: Read, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Reader], str]:
    """Many readers of a training that was removed, which they are yet to be told of; and the training."""
    _, clients, training = await world.running(1, target_num_updates=2)
    readers = read(clients * MANY, training.training_id)
    await begun(readers)
    monkeypatch.setattr(feed, "TURN", 10)
    monkeypatch.setattr(feed, "READERS", 30)
    await store.trainings.remove(training.training_id, training.actor_id, force=True, now=world.now)
    return readers, training.training_id


@pytest.mark.parametrize("everything", [True, False])
async def test_one_read_serves_all(
    store: Store,
    world: World,
    hub: Hub,
    read: Read,
    verbs: list[str],
    caplog: pytest.LogCaptureFixture,
    everything: bool,
) -> None:
    _, clients, training = await world.running(2, target_num_updates=4, round_policy=RoundPolicy(min_updates=1))
    topic = None if everything else training.training_id
    queries = []
    for number, count in enumerate((2, MANY)):
        readers = read([clients[index % 2] for index in range(count)], topic)
        await begun(readers)
        await world.submit(training.training_id, number, clients[0])
        await world.commit(training.training_id)
        verbs.clear()
        caplog.clear()
        with caplog.at_level("DEBUG", "peewee"):
            hub.notify(training.training_id)
            for one in readers:
                assert isinstance(await one.next(), RoundClosed)
                assert isinstance(await one.next(), RoundStarted)
        assert verbs == ["event.poll_all"]
        queries.append(len(caplog.records))
    assert queries[0] == queries[1]


async def test_others_use_the_event_loop_meanwhile(hub: Hub, many: tuple[list[Reader], str]) -> None:
    readers, training_id = many
    hub.notify(training_id)
    received = [0]
    while received[-1] < MANY:
        await asyncio.sleep(0)
        received.append(sum(not one.sent.empty() for one in readers))
    assert max(later - earlier for earlier, later in itertools.pairwise(received)) <= 10


async def test_all_receive_the_last_event_before_a_stream_ends(hub: Hub, many: tuple[list[Reader], str]) -> None:
    readers, training_id = many
    hub.notify(training_id)
    await asyncio.wait([one.task for one in readers], return_when=asyncio.FIRST_COMPLETED)
    assert [one.sent.qsize() for one in readers] == [1] * MANY
    await asyncio.gather(*(one.task for one in readers))
    for one in readers:
        assert isinstance(await one.next(), TrainingRemoved)


async def test_a_stream_ends_however_often_the_others_are_woken(
    store: Store, world: World, hub: Hub, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, clients, training = await world.running(2, target_num_updates=2)
    leaves, stays = readers = read(clients, training.training_id)
    await begun(readers)
    poll_all = type(store.events).poll_all

    async def busy(*arguments: Any) -> Any:
        hub.notify(training.training_id)
        return await poll_all(*arguments)

    monkeypatch.setattr(type(store.events), "poll_all", busy)
    await store.trainings.remove_clients(training.training_id, actor, clients[:1], world.now)
    hub.notify(training.training_id)
    async with asyncio.timeout(20):
        await leaves.task
    assert not stays.task.done()
    monkeypatch.undo()


async def test_a_slow_reader_does_not_delay_others_and_misses_nothing(
    store: Store, world: World, hub: Hub, read: Read
) -> None:
    _, clients, training = await world.running(2, target_num_updates=5, round_policy=RoundPolicy(min_updates=1))
    slow, fast = readers = read(clients, training.training_id)
    await begun(readers)
    slow.open.clear()
    for number in range(3):
        await world.submit(training.training_id, number, clients[0])
        await world.commit(training.training_id)
        hub.notify(training.training_id)
        assert isinstance(await fast.next(), RoundClosed)
        assert (await fast.next()).round == number + 1
    assert slow.sent.empty()
    slow.open.set()
    numbers = [(type(event), event.round) for event in [await slow.next() for _ in range(6)]]
    assert numbers == [(kind, round_) for n in range(3) for kind, round_ in ((RoundClosed, n), (RoundStarted, n + 1))]
    assert slow.sent.empty()


async def test_each_reads_for_itself_when_the_common_read_fails(
    store: Store, world: World, hub: Hub, read: Read, monkeypatch: pytest.MonkeyPatch, verbs: list[str]
) -> None:
    _, clients, training = await world.running(2, target_num_updates=2, round_policy=RoundPolicy(min_updates=1))
    readers = read(clients, training.training_id)
    await begun(readers)

    async def fail(*_: Any) -> Any:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(type(store.events), "poll_all", fail)
    await world.submit(training.training_id, 0, clients[0])
    await world.commit(training.training_id)
    verbs.clear()
    hub.notify(training.training_id)
    for one in readers:
        assert isinstance(await one.next(), RoundClosed)
    assert verbs == ["event.poll"]


async def test_what_is_for_others_wakes_no_reader(
    store: Store, world: World, hub: Hub, read: Read, verbs: list[str]
) -> None:
    actor, clients, training = await world.running(3, target_num_updates=2)
    stays, leaves = readers = read(clients[:2], training.training_id)
    await begun(readers)
    await store.trainings.remove_clients(training.training_id, actor, [clients[1]], world.now)
    verbs.clear()
    hub.notify(training.training_id)
    await leaves.task
    assert verbs == ["event.poll_all"]
    assert stays.sent.empty()
