"""Removals whose answer was lost, and that are repeated; on both databases."""

import asyncio

import pytest

from contracts.world import World, new_id
from fedround_server.domain.errors import LastParticipant, TrainingEnded, TrainingNotFound, UnknownClients
from fedround_server.domain.event import ClientRemoved, TrainingRemoved
from fedround_server.domain.training import Training, TrainingState
from fedround_server.domain.user import Role
from fedround_server.store import Store


async def test_removing_a_training_again_does_nothing(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1)
    remove = store.trainings.remove
    await asyncio.gather(*(remove(training.training_id, actor, force=True, now=world.now) for _ in range(5)))
    log = (await store.events.poll(training.training_id, actor, 0, 100)).events
    await remove(training.training_id, actor, force=False, now=world.now)
    assert (await store.events.poll(training.training_id, actor, 0, 100)).events == log
    assert [type(event.payload) for event in log].count(TrainingRemoved) == 1
    for other in (client, await world.user(Role.ACTOR)):
        with pytest.raises(TrainingNotFound):
            await remove(training.training_id, other, force=True, now=world.now)
    with pytest.raises(TrainingNotFound):
        await remove(new_id(), actor, force=True, now=world.now)


async def test_removing_participants_again_does_nothing(store: Store, world: World) -> None:
    actor, (first, second, third), training = await world.running(3, target_num_updates=1)
    never = await world.user()

    async def leave(caller: str, *users: str) -> tuple[Training, bool]:
        return await store.trainings.remove_clients(training.training_id, caller, users, world.now)

    before = await leave(actor, first, second)
    assert await leave(actor, first, second) == await leave(actor, second) == before
    assert before[0].participant_ids == (third,)
    assert (await leave(first, first))[0].participant_ids == ()
    log = (await store.events.poll(training.training_id, actor, 0, 100)).events
    assert [type(event.payload) for event in log].count(ClientRemoved) == 2
    with pytest.raises(UnknownClients) as error:
        await leave(actor, first, never)
    assert error.value.metadata["client_ids"] == never
    with pytest.raises(LastParticipant):
        await leave(actor, first, third)
    for caller, users in ((first, [second]), (first, [first, second]), (never, [never])):
        with pytest.raises(TrainingNotFound):
            await leave(caller, *users)
    await world.submit(training.training_id, 0, third)
    await world.commit(training.training_id)
    # The training may have ended since.
    assert (await leave(actor, second))[0].state is TrainingState.COMPLETED
    with pytest.raises(TrainingEnded):
        await leave(actor, second, third)
    await store.trainings.remove(training.training_id, actor, force=False, now=world.now)
    with pytest.raises(TrainingNotFound):
        await leave(actor, second)


async def test_who_was_removed_with_an_account_may_be_removed_again(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    await store.users.remove(first, world.now)
    after, closed = await store.trainings.remove_clients(training.training_id, actor, [first], world.now)
    assert (after.participant_ids, closed) == ((second,), False)
