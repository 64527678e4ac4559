"""Which files of updates are kept, on both databases."""

from pathlib import Path
from typing import Any

import pytest

from aggregations import fed_dc
from contracts.audits import check, recorded
from contracts.coordination import Coordination, coordinating
from contracts.test_collection import old, stored
from contracts.world import World, blob
from fedround_server.coordinator.housekeeping import COLLECTION_INTERVAL
from fedround_server.domain.errors import ReplayImpossible, RoundNotOpen, UpdateExists, UpdateSuperseded
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.training import Stop, Training, TrainingState
from fedround_server.store import Store
from fedround_server.store.queries.quota import stored_bytes


async def run(world: World, training: Training, clients: list[str], rounds: int, first: int = 0) -> None:
    """Runs rounds in which every client submits."""
    for number in range(first, first + rounds):
        for client in clients:
            await world.submit(training.training_id, number, client)
        assert await world.commit(training.training_id)


async def kept(store: Store, clients: list[str], rounds: int) -> list[int]:
    """In how many files of each round the collection finds something that is needed."""
    counts = []
    for number in range(rounds):
        digests = [blob(f"{number} {client}").sha256 for client in clients]
        counts.append(len(await store.models.digests_in_use(digests)))
    return counts


@pytest.mark.parametrize(
    ("keep", "expected"), [(None, [2, 2, 2, 2]), (0, [0, 0, 0, 0]), (1, [0, 0, 0, 2]), (3, [0, 2, 2, 2]), (9, [2] * 4)]
)
async def test_the_updates_of_the_last_rounds_are_kept(
    store: Store, world: World, keep: int | None, expected: list[int]
) -> None:
    actor, clients, training = await world.running(2, target_num_updates=5, keep_update_rounds=keep)
    before = await store._database.run(lambda: stored_bytes(actor))
    await run(world, training, clients, 4)
    assert await kept(store, clients, 4) == expected
    versions = sum(len(f"version {number}") for number in range(1, 5))
    size = len(f"0 {clients[0]}")
    assert await store._database.run(lambda: stored_bytes(actor)) == before + versions + size * sum(expected)
    dropped = [
        (one["subject"], one["num_updates"], one["size_bytes"]) for one in await recorded(store, "updates_dropped")
    ]
    assert dropped == [(str(number), 2, 2 * size) for number in range(expected.count(0))]
    assert (await store.trainings.get(training.training_id, actor)).spec.keep_update_rounds == keep
    await check(store)


async def test_the_updates_of_an_open_or_a_closed_round_are_never_dropped(store: Store, world: World) -> None:
    _, clients, training = await world.running(2, target_num_updates=3, keep_update_rounds=0)
    await run(world, training, clients, 1)
    await world.submit(training.training_id, 1, clients[0])
    assert await kept(store, clients, 2) == [0, 1]
    await world.submit(training.training_id, 1, clients[1])
    assert await kept(store, clients, 2) == [0, 2]


async def test_a_dropped_update_that_is_sent_again_has_its_receipt(store: Store, world: World) -> None:
    _, clients, training = await world.running(2, target_num_updates=3, keep_update_rounds=0)
    receipt, _ = await world.submit(training.training_id, 0, clients[0])
    await world.submit(training.training_id, 0, clients[1])
    await world.commit(training.training_id)
    again, closed = await world.submit(training.training_id, 0, clients[0])
    assert (again, closed) == (receipt, False)
    with pytest.raises(UpdateExists):
        await world.submit(training.training_id, 0, clients[0], "another one")


async def test_superseded_updates_are_dropped_with_their_round(store: Store, world: World) -> None:
    actor, clients, training = await world.running(3, target_num_updates=3, keep_update_rounds=1)
    await world.submit(training.training_id, 0, clients[0])
    await store.trainings.remove_clients(training.training_id, actor, [clients[0]], world.now)
    assert await kept(store, clients, 1) == [1]
    await run(world, training, clients[1:], 1)
    assert await kept(store, clients, 1) == [2]
    assert await kept(store, clients[:1], 1) == [0]
    with pytest.raises(UpdateSuperseded):
        await world.submit(training.training_id, 0, clients[0])


async def test_an_abandoned_round_keeps_no_updates(store: Store, world: World) -> None:
    actor, clients, training = await world.running(
        2, target_num_updates=3, keep_update_rounds=2, round_policy=RoundPolicy(min_updates=2)
    )
    await run(world, training, clients, 1)
    await world.submit(training.training_id, 1, clients[0])
    before = await store._database.run(lambda: stored_bytes(actor))
    await store.control.stop(training.training_id, actor, Stop.NOW, None, world.now)
    assert await kept(store, clients, 2) == [2, 0]
    after = await store._database.run(lambda: stored_bytes(actor))
    assert before - after == len(f"1 {clients[0]}")


async def test_evaluation_rounds_are_not_counted(store: Store, world: World) -> None:
    _, (client,), training = await world.running(
        1, target_num_updates=3, keep_update_rounds=1, metric_names=("accuracy",)
    )
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    await world.report(training.training_id, 1, client, 1, accuracy=0.5)
    await world.commit(training.training_id)
    assert await kept(store, [client], 1) == [1]
    await world.submit(training.training_id, 2, client)
    await world.commit(training.training_id)
    assert await kept(store, [client], 3) == [0, 0, 1]


async def test_a_chain_keeps_the_models_that_are_assigned(store: Store, world: World) -> None:
    actor, clients, training = await world.running(
        2, target_num_updates=2, aggregation=fed_dc(1, 3), keep_update_rounds=0
    )
    await run(world, training, clients, 1)
    assert await kept(store, clients, 1) == [2]
    _, assigned = await store.rounds.assigned(training.training_id, 1, clients[0])
    assert assigned == blob(f"0 {clients[1]}")
    await run(world, training, clients, 1, first=1)
    assert await kept(store, clients, 2) == [0, 2]
    with pytest.raises(RoundNotOpen, match="not kept"):
        await store.rounds.assigned(training.training_id, 1, clients[0])
    await run(world, training, clients, 1, first=2)
    assert await kept(store, clients, 3) == [0, 0, 0]
    assert (await store.trainings.get(training.training_id, actor)).model_version == 1


async def test_the_models_of_the_last_step_of_a_chain_are_not_kept(store: Store, world: World) -> None:
    _, clients, training = await world.running(2, target_num_updates=1, aggregation=fed_dc(1, 2), keep_update_rounds=0)
    await run(world, training, clients, 2)
    assert await kept(store, clients, 2) == [0, 0]
    with pytest.raises(RoundNotOpen, match="not kept"):
        await store.rounds.assigned(training.training_id, 1, clients[0])


async def test_a_round_without_its_updates_is_not_replayed(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, target_num_updates=3, keep_update_rounds=1)
    await run(world, training, clients, 2)
    with pytest.raises(ReplayImpossible, match="keep_update_rounds is 1") as raised:
        await store.rounds.find_replay(training.training_id, 0, actor)
    assert raised.value.metadata["cause"] == "KEEP_UPDATE_ROUNDS"
    assert len((await store.rounds.find_replay(training.training_id, 1, actor)).aggregation.updates) == 2


def age(coordination: Coordination, *contents: str) -> list[Any]:
    return [old(coordination, content) for content in contents]


async def test_the_collection_removes_the_files_that_were_dropped(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await coordination.running(2, target_num_updates=2, keep_update_rounds=1)
        for number in range(2):
            for client in clients:
                await coordination.submit(training.training_id, number, client)
            await coordination.until(
                actor, training.training_id, lambda found, number=number: found.model_version == number + 1
            )
        files = age(coordination, *(f"{number} {client}" for number in range(2) for client in clients))
        await coordination.coordinator.recover()
        await coordination.clock.asleep(COLLECTION_INTERVAL)
        assert stored(coordination, *files) == [False, False, True, True]
        found = await store.trainings.get(training.training_id, actor)
        assert found.state is TrainingState.COMPLETED
