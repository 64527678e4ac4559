"""What check-ins return, in responses of any size; on both databases."""

from datetime import timedelta
from typing import Any

import pytest

from contracts.world import World
from fedround_server.coordinator import Context
from fedround_server.coordinator.check_in import CheckedIn, CheckIns, Full
from fedround_server.domain.event import (
    ClientRemoved,
    Event,
    RoundClosed,
    RoundStarted,
    TrainingFinished,
    TrainingStarted,
)
from fedround_server.domain.limits import Limits
from fedround_server.store import Store
from fedround_server.wakeups import Hub

NOTHING: Any = None


class Device:
    """A user that checks in, and takes so many events at a time."""

    def __init__(self, store: Store, user: str, at_a_time: int) -> None:
        context = Context(store, NOTHING, NOTHING, Hub(), NOTHING, Limits(check_in=timedelta(seconds=8)))
        self.presence = context.presence
        self.cursors: dict[str, int] = {}
        self._check_ins = CheckIns(context, lambda: 0.25)
        self._user = user
        self._at_a_time = at_a_time

    async def check_in(self, training_id: str | None = None) -> tuple[list[Event], CheckedIn]:
        events: list[Event] = []

        def add(event: Event) -> None:
            if len(events) == self._at_a_time:
                raise Full
            events.append(event)

        found = await self._check_ins.check_in(self._user, training_id, self.cursors, add, None, {}, None)
        self.cursors = dict(found.resume_after)
        return events, found

    async def news(self, training_id: str | None = None) -> list[Any]:
        """Checks in for as long as there is more, and returns the payloads of the events."""
        payloads = []
        while True:
            events, found = await self.check_in(training_id)
            payloads += [event.payload for event in events]
            if found.retry_after:
                return payloads
            assert len(events) == self._at_a_time


def types(payloads: list[Any]) -> list[type]:
    return [type(payload) for payload in payloads]


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("at_a_time", [1, 2, 100])
async def test_each_event_comes_once_and_in_order(store: Store, world: World, at_a_time: int, everything: bool) -> None:
    _, (client,), training = await world.running(1)
    asked = None if everything else training.training_id
    device = Device(store, client, at_a_time)
    (started,) = await device.news(asked)
    assert isinstance(started, RoundStarted)
    assert await device.news(asked) == []
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    assert types(await device.news(asked)) == [RoundClosed, RoundStarted]
    await world.submit(training.training_id, 1, client)
    await world.commit(training.training_id)
    assert types(await device.news(asked)) == [RoundClosed, TrainingFinished]
    assert device.cursors == {}


async def test_all_trainings_and_the_end_of_a_participation(store: Store, world: World) -> None:
    actor, (client, other), first = await world.running(2)
    device = Device(store, client, 100)
    assert types(await device.news()) == [RoundStarted]
    second = await world.training(actor, [client])
    assert await device.news() == []
    assert device.cursors.keys() == {first.training_id, second.training_id}
    await store.trainings.start(second.training_id, actor, None, world.now)
    assert types(await device.news()) == [TrainingStarted, RoundStarted]
    await store.trainings.remove_clients(first.training_id, actor, [client], world.now)
    assert types(await device.news()) == [ClientRemoved]
    assert device.cursors.keys() == {second.training_id}
    assert other


async def test_when_to_come_back(store: Store, world: World) -> None:
    _, (client,), training = await world.running(1)
    device, idle = Device(store, client, 100), Device(store, await world.user(), 100)
    assert (await device.check_in())[1].retry_after == timedelta(seconds=6)
    assert (await idle.check_in())[1].retry_after == timedelta(seconds=36)
    assert not (await device.check_in(training.training_id))[1].ended
    # In more than one response there is nothing to wait for.
    small = Device(store, client, 1)
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    small.cursors = {training.training_id: 1}
    assert (await small.check_in())[1].retry_after == timedelta(0)
    assert small.presence.num_expected() == 0
