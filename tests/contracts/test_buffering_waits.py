"""Updates of asynchronous trainings that arrive while no round is open, on both databases."""

import asyncio
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.audits import check, recorded
from contracts.blobs import put
from contracts.coordination import Coordination, coordinating
from contracts.test_buffering import buffered
from contracts.world import blob, update
from fedround_server.aggregators.median import Median
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import NotInCohort, RoundNotOpen, ServerLeaving, UpdateStale
from fedround_server.domain.training import Stop
from fedround_server.domain.update import Update
from fedround_server.store import Store


async def closed(coordination: Coordination, clients: int = 3, **spec: Any) -> tuple[str, str, list[str]]:
    """Returns an actor, its training whose first round is being aggregated, and its participants."""
    spec = {"aggregation": buffered(), "target_num_updates": 20, **spec}
    actor, users, training = await coordination.running(clients, **spec)
    coordination.engine.may_end.clear()
    for user in users[1:3]:
        await coordination.submit(training.training_id, 0, user)
    return actor, training.training_id, users


async def waiting(coordination: Coordination, training_id: str, user: str) -> "asyncio.Task[Update]":
    """Starts the acceptance of an update of the first version, which has to wait."""
    new = update(training_id, 0, user)
    new = replace(new, blob=put(coordination.context.blobs, f"0 {user}".encode()))
    task = asyncio.create_task(coordination.coordinator.submissions._accept_update(new))
    hub = coordination.context.hub
    while not hub._listeners.get(user):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_an_update_waits_for_the_next_round(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, training_id, users = await closed(coordination)
        task = await waiting(coordination, training_id, users[0])
        coordination.engine.may_end.set()
        accepted = await task
        assert (accepted.round, accepted.base_version) == (1, 0)
        await coordination.submit(training_id, 1, users[1])
        await coordination.until(users[0], training_id, lambda training: training.model_version == 2)
    assert [len(job.origins) for job in coordination.engine.jobs] == [2, 2]
    stale = [origin for origin in coordination.engine.jobs[1].origins if origin.base is not None]
    assert [origin.factor for origin in stale] == [pytest.approx(2**-0.5)]


async def test_one_that_fills_the_next_round_makes_the_one_after_it(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, training_id, users = await closed(coordination, 5)
        tasks = [await waiting(coordination, training_id, users[index]) for index in (0, 3, 4)]
        coordination.engine.may_end.set()
        accepted = await asyncio.gather(*tasks)
        assert sorted(one.round for one in accepted) == [1, 1, 2]
        await coordination.until(actor, training_id, lambda training: training.model_version == 2)


async def test_a_pause_ends_the_wait(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, training_id, users = await closed(coordination)
        task = await waiting(coordination, training_id, users[0])
        await coordination.coordinator.control.pause(training_id, actor, None)
        with pytest.raises(RoundNotOpen, match="paused; keep the update"):
            await task
        coordination.engine.may_end.set()
        await coordination.until(actor, training_id, lambda training: training.model_version == 1)


async def test_a_stop_ends_the_wait(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, training_id, users = await closed(coordination)
        task = await waiting(coordination, training_id, users[0])
        await coordination.coordinator.control.stop(training_id, actor, Stop.AFTER_ROUND, None)
        with pytest.raises(RoundNotOpen, match="no round takes updates any more"):
            await task
        coordination.engine.may_end.set()
        await coordination.until(actor, training_id, lambda training: training.state.is_ended)


async def test_the_last_version_ends_the_wait(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, training_id, users = await closed(coordination, target_num_updates=1)
        task = await waiting(coordination, training_id, users[0])
        coordination.engine.may_end.set()
        with pytest.raises(RoundNotOpen, match="no round takes updates any more"):
            await task


async def test_a_server_that_leaves_ends_the_wait(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, training_id, users = await closed(coordination)
        task = await waiting(coordination, training_id, users[0])
        coordination.coordinator.start_draining()
        with pytest.raises(ServerLeaving):
            await task
        coordination.engine.may_end.set()
    assert (await store.rounds.find_aggregation(training_id)) is not None


async def test_an_update_that_waits_takes_the_place_of_a_damaged_one(store: Store, tmp_path: Path) -> None:
    shadowed = replace(buffered(), shadows=(Aggregation(Median()),))
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.reads = True
        actor, training_id, users = await closed(coordination, 4, aggregation=shadowed)
        tasks = [await waiting(coordination, training_id, users[index]) for index in (0, 3)]
        coordination.context.blobs.files.local_path(blob(f"0 {users[1]}")).unlink()
        coordination.engine.may_end.set()
        assert [(await task).round for task in tasks] == [0, 1]
        # The lost one is sent again, and counts in the round that is open by now.
        await coordination.submit(training_id, 0, users[1])
        await coordination.until(actor, training_id, lambda training: training.model_version == 2)
        accepted = [one["participant_id"] for one in await recorded(store, "update_accepted")]
        counted = [
            [one["participant_id"] for one in made["updates"]] for made in await recorded(store, "updates_counted")
        ]
        assert sorted(accepted) == sorted([*users, users[1]])
        assert counted == [sorted([users[0], users[2]]), sorted([users[1], users[3]])]
        assert [one["round"] for one in await recorded(store, "shadow_version_made")] == [0, 1]
        [superseded] = await recorded(store, "updates_superseded")
        assert (superseded["reason"], len(superseded["update_ids"])) == ("file_damaged", 1)
        await check(store)


async def test_a_user_who_waits_behind_another_can_be_removed(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, training_id, users = await closed(coordination, 4)
        first, second = [await waiting(coordination, training_id, users[index]) for index in (0, 3)]
        await coordination.coordinator.remove_user(users[3], force=True)
        with pytest.raises(NotInCohort):
            await second
        assert not first.done()
        coordination.engine.may_end.set()
        assert (await first).round == 1


async def test_a_participant_who_waits_behind_another_can_be_removed(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, training_id, users = await closed(coordination, 4)
        first, second = [await waiting(coordination, training_id, users[index]) for index in (0, 3)]
        await coordination.coordinator.trainings.remove_clients(training_id, actor, [users[3]])
        with pytest.raises(NotInCohort):
            await second
        assert not first.done()
        coordination.engine.may_end.set()
        assert (await first).round == 1


async def test_a_pending_round_is_waited_for(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await coordination.running(
            2, aggregation=buffered(), cohort=Cohort(min_available=1), target_num_updates=20
        )
        training_id = training.training_id
        task = await waiting(coordination, training_id, users[0])
        presence = coordination.context.presence
        presence.begin(users[1], coordination.clock.now)
        await coordination.coordinator.rounds.openings.look(training_id)
        assert (await task).round == 0
        assert (await store.trainings.get(training_id, actor)).updates_arrived == 1


async def test_a_failure_waits_too(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, training_id, users = await closed(coordination)
        rounds = coordination.coordinator.rounds
        report = asyncio.create_task(rounds.report_failure(training_id, 0, users[0], "TRAIN_FAILED", "no disk"))
        while not coordination.context.hub._listeners.get(training_id):
            await asyncio.sleep(0)
        coordination.engine.may_end.set()
        await report
        view = await store.rounds.explain(training_id, 1, actor)
        assert [one.user_id for one in view.members if one.failure is not None] == [users[0]]


async def test_updates_wait_across_many_rounds_and_count_once(store: Store, tmp_path: Path) -> None:
    draw = random.Random(7)
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await coordination.running(5, aggregation=buffered(), target_num_updates=25)
        training_id, receipts = training.training_id, defaultdict(set)

        async def participate(user: str) -> None:
            number = 0
            while True:
                for _ in range(draw.randrange(20)):
                    await asyncio.sleep(0)
                new = update(training_id, number, user)
                new = replace(new, blob=put(coordination.context.blobs, f"{number} {user}".encode()))
                last = number
                try:
                    for _ in range(draw.choice([1, 1, 2])):
                        accepted = await coordination.coordinator.submissions._accept_update(new)
                        receipts[user, accepted.base_version].add((accepted.update_id, accepted.round))
                        last = accepted.round
                except UpdateStale:
                    pass
                except RoundNotOpen:
                    return
                after = await coordination.until(
                    actor,
                    training_id,
                    lambda training, last=last: training.round > last or training.state.is_ended,
                )
                if after.state.is_ended:
                    # The same update would get its receipt again and again.
                    return
                number = after.round

        await asyncio.gather(*map(participate, users))
        assert (await store.trainings.get(training_id, actor)).model_version == 25
    assert all(len(same) == 1 for same in receipts.values())
    in_versions = [one["update_id"] for made in await recorded(store, "updates_counted") for one in made["updates"]]
    superseded = [one for made in await recorded(store, "updates_superseded") for one in made["update_ids"]]
    accepted = [update_id for same in receipts.values() for update_id, _ in same]
    assert sorted(in_versions + superseded) == sorted(accepted)
    await check(store)
