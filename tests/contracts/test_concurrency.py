"""What comes at the instant of something else, or while it is in progress; on both databases."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from contracts.coordination import Coordination, coordinating
from contracts.test_event import kinds, read
from contracts.world import blob
from fedround_server.domain.errors import RoundNotOpen, TrainingNotFound
from fedround_server.domain.event import RoundClosed, RoundStarted, TrainingFailed, TrainingRemoved, UpdateAccepted
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.training import TrainingState
from fedround_server.store import Store
from sizes import size

DEADLINE = timedelta(seconds=30)
RACES = size("RACES", 8)


async def under_way(coordination: Coordination, training_id: str) -> "asyncio.Task[None]":
    """Waits until the aggregation has begun, and returns it."""
    while not coordination.engine.jobs:
        await asyncio.sleep(0)
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == f"aggregate {training_id}")
    return task


@pytest.mark.attack
async def test_the_last_update_at_the_deadline_counts_or_is_rejected(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        for _ in range(RACES):
            actor, (first, second), training = await coordination.running(
                2, round_policy=RoundPolicy(deadline=DEADLINE)
            )
            await coordination.submit(training.training_id, 0, first)
            await coordination.clock.asleep(DEADLINE)
            last = asyncio.create_task(coordination.submit(training.training_id, 0, second))
            coordination.clock.advance(DEADLINE)
            try:
                await last
            except RoundNotOpen:
                after = await store.trainings.get(training.training_id, actor)
                assert after.state is TrainingState.ERROR
                expected = [UpdateAccepted, TrainingFailed]
            else:
                after = await coordination.until(
                    actor, training.training_id, lambda training: training.model_version == 1
                )
                assert (after.state, after.round) == (TrainingState.ONGOING, 1)
                expected = [UpdateAccepted, UpdateAccepted, RoundClosed, RoundStarted]
            assert kinds(await read(store, training.training_id, actor))[2:] == expected


async def test_a_deadline_right_behind_the_last_update_has_no_effect(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.may_end.clear()
        actor, (client,), training = await coordination.running(1, round_policy=RoundPolicy(deadline=DEADLINE))
        await coordination.clock.asleep(DEADLINE)
        await coordination.submit(training.training_id, 0, client)
        coordination.clock.advance(DEADLINE)
        await under_way(coordination, training.training_id)
        coordination.engine.may_end.set()
        after = await coordination.until(actor, training.training_id, lambda training: training.model_version == 1)
        assert after.state is TrainingState.ONGOING


async def test_an_update_behind_the_deadline_is_rejected(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, round_policy=RoundPolicy(deadline=DEADLINE))
        await coordination.clock.asleep(DEADLINE)
        coordination.clock.advance(DEADLINE)
        after = await coordination.until(
            actor, training.training_id, lambda training: training.state is TrainingState.ERROR
        )
        with pytest.raises(RoundNotOpen, match="the round is ABANDONED"):
            await coordination.submit(training.training_id, 0, client)
        assert await store.trainings.get(training.training_id, actor) == after


async def test_the_next_rounds_update_is_too_early_while_this_one_is_aggregated(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.may_end.clear()
        actor, (client,), training = await coordination.running(1)
        await coordination.submit(training.training_id, 0, client)
        await under_way(coordination, training.training_id)
        before = await store.trainings.get(training.training_id, actor)
        with pytest.raises(RoundNotOpen, match="the round is not open: the current round is 0"):
            await coordination.submit(training.training_id, 1, client)
        assert await store.trainings.get(training.training_id, actor) == before
        coordination.engine.may_end.set()
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)
        await coordination.submit(training.training_id, 1, client)


async def test_a_training_that_is_removed_while_it_is_aggregated_stays_removed(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.may_end.clear()
        actor, (client,), training = await coordination.running(1)
        await coordination.submit(training.training_id, 0, client)
        aggregation = await under_way(coordination, training.training_id)
        await coordination.coordinator.trainings.remove(training.training_id, actor, force=True)
        coordination.engine.may_end.set()
        await aggregation
        with pytest.raises(TrainingNotFound):
            await store.trainings.get(training.training_id, actor)
        assert kinds(await read(store, training.training_id, actor))[2:] == [UpdateAccepted, TrainingRemoved]
        assert (await store.models.get_version(training.model_id, None, actor)).version == 0
        # What the aggregation made is no user's.
        stored = {path.name for path in (tmp_path / "objects").rglob("*") if path.is_file()}
        made = stored - {blob("zeros").sha256, blob(f"0 {client}").sha256}
        assert len(made) == 1
        assert await store.models.digests_in_use(made) == set()
