"""A draining server leaves rounds to the next one, on both databases."""

import asyncio
from datetime import timedelta
from pathlib import Path

from contracts.coordination import Coordination, coordinating
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingState
from fedround_server.store import Store

MINUTE = timedelta(minutes=1)


async def ended(training_id: str) -> None:
    """Waits for the tasks of a training."""
    await asyncio.wait([task for task in asyncio.all_tasks() if task.get_name().endswith(training_id)])


async def current(coordination: Coordination, training_id: str) -> tuple[int, RoundState]:
    found = await coordination.context.store.rounds.current(training_id)
    assert found is not None
    return found.number, found.state


async def test_an_aggregation_that_ends_while_the_server_drains_opens_no_round(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1)
        coordination.engine.may_end.clear()
        await coordination.submit(training.training_id, 0, client)
        while not coordination.engine.jobs:
            await asyncio.sleep(0)
        coordination.coordinator.start_draining()
        coordination.engine.may_end.set()
        await ended(training.training_id)
        assert await current(coordination, training.training_id) == (0, RoundState.AGGREGATING)
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)


async def test_an_update_that_closes_a_round_while_the_server_drains_is_accepted(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        coordination.coordinator.start_draining()
        await coordination.submit(training.training_id, 0, client)
        assert coordination.engine.jobs == []
        assert await current(coordination, training.training_id) == (0, RoundState.AGGREGATING)
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        await coordination.until(
            actor, training.training_id, lambda training: training.state is TrainingState.COMPLETED
        )


async def test_a_deadline_that_passes_while_the_server_drains_is_judged_by_the_next_one(
    store: Store, tmp_path: Path
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, _, training = await coordination.running(1, round_policy=RoundPolicy(deadline=MINUTE))
        await coordination.clock.asleep(MINUTE)
        coordination.coordinator.start_draining()
        coordination.clock.advance(MINUTE)
        await ended(training.training_id)
        assert await current(coordination, training.training_id) == (0, RoundState.OPEN)
    async with coordinating(store, tmp_path) as coordination:
        coordination.clock.advance(MINUTE)
        await coordination.coordinator.recover()
        await coordination.until(actor, training.training_id, lambda training: training.state is TrainingState.ERROR)
