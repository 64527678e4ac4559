"""A training continues without removed participants, as long as one remains; on both databases."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aggregations import fed_dc
from contracts.coordination import coordinating
from contracts.world import World
from fedround_server.blobs import UploadRef
from fedround_server.domain.errors import NotInCohort
from fedround_server.domain.event import RoundStarted
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import RoundKind
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingState
from fedround_server.domain.uncertainty import NoUncertainty, Swag
from fedround_server.store import Store
from fedround_server.store.verbs.user import UserVerbs

Leave = Callable[[World, str, str, list[str]], Awaitable[object]]


async def by_the_actor(world: World, training_id: str, actor: str, users: list[str]) -> None:
    await world.store.trainings.remove_clients(training_id, actor, users, world.now)


async def with_their_accounts(world: World, training_id: str, actor: str, users: list[str]) -> None:
    for user in users:
        await world.store.users.remove(user, world.now)


removal_ways = pytest.mark.parametrize("leave", [by_the_actor, with_their_accounts])


async def started(store: Store, training_id: str, user: str) -> list[RoundStarted]:
    events = (await store.events.poll(training_id, user, 0, 100)).events
    return [event.payload for event in events if isinstance(event.payload, RoundStarted)]


@removal_ways
async def test_a_round_whose_whole_cohort_left_is_followed_by_one_for_those_who_stay(
    store: Store, world: World, leave: Leave
) -> None:
    actor, cohort, training = await world.running(2, target_num_updates=1)
    await world.submit(training.training_id, 0, cohort[0])
    late = await world.user()
    await store.trainings.register(training.training_id, actor, [late], world.now)
    await leave(world, training.training_id, actor, cohort)
    after = await store.trainings.get(training.training_id, actor)
    assert (after.state, after.round, after.updates_expected, after.updates_arrived) == (TrainingState.ONGOING, 1, 1, 0)
    assert (await store.rounds.explain(training.training_id, 0, actor)).round.state is RoundState.ABANDONED
    assert [payload.round for payload in await started(store, training.training_id, late)] == [1]
    assert (await world.submit(training.training_id, 1, late))[1]
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert [update.user_id for update in task.updates] == [late]
    await world.commit(training.training_id)
    assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.COMPLETED


@removal_ways
@pytest.mark.parametrize("kind", [KINDS["EVALUATE"], KINDS["SWAG"]])
async def test_the_following_round_is_of_the_same_kind(
    store: Store, world: World, leave: Leave, kind: RoundKind
) -> None:
    swag = Swag(samples=1, rank=0, every=0) if kind is KINDS["SWAG"] else NoUncertainty()
    metrics = ("loss",) if kind is KINDS["EVALUATE"] else ()
    actor, cohort, training = await world.running(1, target_num_updates=1, uncertainty=swag, metric_names=metrics)
    await world.submit(training.training_id, 0, cohort[0])
    await world.commit(training.training_id)
    late = await world.user()
    await store.trainings.register(training.training_id, actor, [late], world.now)
    await leave(world, training.training_id, actor, cohort)
    current = await store.rounds.current(training.training_id)
    assert current is not None
    assert (current.number, current.kind, current.state, current.model_version) == (2, kind, RoundState.OPEN, 1)


@removal_ways
async def test_daisy_chaining_begins_anew_after_the_whole_cohort_left(store: Store, world: World, leave: Leave) -> None:
    chain = fed_dc(daisy_period=1, aggregation_period=3, seed=0)
    actor, cohort, training = await world.running(2, aggregation=chain)
    for client in cohort:
        await world.submit(training.training_id, 0, client)
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert await store.rounds.commit(training.training_id, 0, task.round.epoch, None, world.now)
    late = await world.user()
    await store.trainings.register(training.training_id, actor, [late], world.now)
    await leave(world, training.training_id, actor, cohort)
    current = await store.rounds.current(training.training_id)
    assert current is not None
    assert (current.number, current.step) == (2, 0)
    assert [(payload.round, payload.assigned) for payload in await started(store, training.training_id, late)] == [
        (2, False)
    ]
    with pytest.raises(NotInCohort):
        await store.rounds.assigned(training.training_id, 2, late)


@pytest.mark.parametrize("with_account", [False, True])
async def test_the_deadline_of_the_following_round_holds(store: Store, tmp_path: Path, with_account: bool) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (gone,), training = await coordination.running(
            1, round_policy=RoundPolicy(deadline=timedelta(minutes=1))
        )
        await coordination.coordinator.trainings.register(
            training.training_id, actor, [await coordination.world.user()]
        )
        coordination.clock.advance(timedelta(seconds=30))
        if with_account:
            await coordination.coordinator.remove_user(gone, force=False)
        else:
            await coordination.coordinator.trainings.remove_clients(training.training_id, actor, [gone])
        await coordination.clock.asleep(coordination.clock.now() + timedelta(minutes=1))
        coordination.clock.advance(timedelta(minutes=1))
        await coordination.until(actor, training.training_id, lambda training: training.state is TrainingState.ERROR)


async def test_a_removal_completes_although_its_caller_is_cancelled(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = UserVerbs.remove

    async def remove_and_cancel(*args: Any, **kwargs: Any) -> list[str]:
        left = await remove(*args, **kwargs)
        removal.cancel()
        return left

    async with coordinating(store, tmp_path) as coordination:
        actor, (stays, gone), training = await coordination.running(2)
        await coordination.submit(training.training_id, 0, stays)
        with coordination.context.blobs.writer(UploadRef(gone, "half an upload")) as writer:
            writer.write(b"half")
        monkeypatch.setattr(UserVerbs, "remove", remove_and_cancel)
        removal = asyncio.create_task(coordination.coordinator.remove_user(gone, force=False))
        with pytest.raises(asyncio.CancelledError):
            await removal
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)
        await coordination.coordinator.close()
        assert coordination.context.blobs.upload_size(UploadRef(gone, "half an upload")) == 0


async def test_the_deadlines_of_a_removed_actor_are_cancelled(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(
            1, round_policy=RoundPolicy(deadline=timedelta(minutes=1))
        )
        (timer,) = [task for task in asyncio.all_tasks() if task.get_name().startswith("deadline")]
        with coordination.context.hub.waiter() as participant:
            participant.follow([training.training_id])
            await coordination.coordinator.remove_user(actor, force=True)
            assert await participant.wait(30)
        assert (await store.events.poll(training.training_id, client, 0, 100)).view.ended
        with pytest.raises(asyncio.CancelledError):
            await timer
