"""The state that aggregations leave with versions, and the reports about updates, on both databases."""

from pathlib import Path
from typing import Any

import pytest

from aggregations import ADAM, FED_AVG, YOGI
from contracts.audits import check, recorded
from contracts.coordination import coordinating
from contracts.world import World, blob
from fedround_server.coordinator.aggregation import DAMAGE_DELAY, RETRY_DELAY
from fedround_server.domain.aggregation import AggregationState, UpdateFacts
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.model import BlobRef
from fedround_server.domain.training import Training, TrainingState
from fedround_server.domain.uncertainty import Swag
from fedround_server.store import Store
from fedround_server.store.queries.quota import stored_bytes
from fedround_server.store.transitions import commit_round

SLOTS = ("adam/m", "adam/v")


def state(number: int, *slots: str) -> AggregationState:
    """The state that the test commits with a version."""
    names = slots or SLOTS
    return AggregationState({slot: blob(f"{slot} {number}") for slot in names}, dict.fromkeys(names, number))


async def commit(world: World, training_id: str, left: AggregationState | None = None, **more: Any) -> AggregationState:
    """Commits the closed round with what its aggregation leaves, and returns what it started from."""
    task = await world.store.rounds.find_aggregation(training_id)
    assert task is not None
    number = task.round.number + 1
    result = None if task.computation is None else blob(f"version {number}")
    made = await world.store.rounds.commit(
        training_id, task.round.number, task.round.epoch, result, world.now, left or AggregationState(), **more
    )
    assert made
    return task.state


async def one_round(world: World, training: Training, number: int, client: str, left: AggregationState) -> None:
    await world.submit(training.training_id, number, client)
    await commit(world, training.training_id, left)


def size_of(*blobs: BlobRef) -> int:
    return sum(one.size_bytes for one in blobs)


async def used(store: Store, actor: str) -> int:
    return await store._database.run(lambda: stored_bytes(actor))


async def test_the_next_aggregation_starts_from_the_state_of_its_version(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=3, aggregation=ADAM)
    for number in range(3):
        await world.submit(training.training_id, number, client)
        started = await commit(world, training.training_id, state(number + 1))
        assert started == (state(number) if number else AggregationState())
    version = await store.models.get_version(training.model_id, 2, actor)
    assert {kind: (one.blob, one.details) for kind, one in version.artifacts.items()} == {
        slot: (blob(f"{slot} 2"), {"steps": 2}) for slot in SLOTS
    }
    made = await recorded(store, "version_made")
    assert [one["state"]["adam/v"] for one in made] == [
        {"sha256": blob(f"adam/v {number}").sha256, "size_bytes": len(f"adam/v {number}"), "steps": number}
        for number in (1, 2, 3)
    ]
    assert made[0]["server_optimizer"]["name"] == "adam"
    await check(store)


async def test_a_commit_that_fails_leaves_neither_version_nor_state(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (client,), training = await world.running(1, aggregation=ADAM)
    await world.submit(training.training_id, 0, client)

    def broken(*_: object) -> None:
        raise StoreUnavailable("the database does not answer: try again")

    with monkeypatch.context() as patch:
        patch.setattr(commit_round, "record_work", broken)
        with pytest.raises(StoreUnavailable):
            await commit(world, training.training_id, state(1))
    assert await store.models.digests_in_use([blob("adam/m 1").sha256]) == set()
    assert await commit(world, training.training_id, state(1)) == AggregationState()
    assert await store.models.digests_in_use([blob("adam/m 1").sha256]) == {blob("adam/m 1").sha256}


async def test_rounds_in_between_leave_the_state_where_it_is(store: Store, world: World) -> None:
    _, (client,), training = await world.running(
        1, aggregation=ADAM, metric_names=("accuracy",), uncertainty=Swag(1, every=1)
    )
    await one_round(world, training, 0, client, state(1))
    kinds, number = [], 1
    while (current := await store.rounds.current(training.training_id)) is not None and current.kind.name != "TRAIN":
        kinds.append(current.kind.name)
        if current.kind.name == "EVALUATE":
            await world.report(training.training_id, number, client, 1, accuracy=0.5)
        else:
            await world.submit(training.training_id, number, client)
        await commit(world, training.training_id)
        number += 1
    assert sorted(kinds) == ["EVALUATE", "SWAG"]
    await world.submit(training.training_id, number, client)
    assert await commit(world, training.training_id, state(2)) == state(1)


@pytest.mark.parametrize("version", [None, 1], ids=["latest", "older"])
async def test_a_training_with_the_same_optimizer_goes_on_from_the_state(
    store: Store, world: World, version: int | None
) -> None:
    actor, (client,), training = await world.running(1, aggregation=ADAM)
    for number in range(2):
        await one_round(world, training, number, client, state(number + 1))
    again = await world.training(actor, [client], model_id=training.model_id, model_version=version, aggregation=ADAM)
    await store.trainings.start(again.training_id, actor, None, world.now)
    await world.submit(again.training_id, 0, client)
    assert await commit(world, again.training_id, state(3)) == state(version or 2)
    made = [one for one in await recorded(store, "model_created") if one["source_model_id"]]
    assert [one["state"]["adam/m"]["steps"] for one in made] == [version or 2]


@pytest.mark.parametrize("other", [YOGI, FED_AVG], ids=["yogi", "none"])
async def test_another_optimizer_begins_anew(store: Store, world: World, other: Any) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=1, aggregation=ADAM)
    await one_round(world, training, 0, client, state(1))
    again = await world.training(actor, [client], model_id=training.model_id, aggregation=other)
    assert (await store.models.get_version(again.model_id, 0, actor)).artifacts == {}
    await store.trainings.start(again.training_id, actor, None, world.now)
    await world.submit(again.training_id, 0, client)
    assert await commit(world, again.training_id) == AggregationState()


async def test_states_are_dropped_with_their_versions_and_models(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=3, aggregation=ADAM, keep_versions=1)
    for number in range(3):
        await one_round(world, training, number, client, state(number + 1))
    files = [blob(content) for content in ("version 3", "adam/m 3", "adam/v 3")]
    updates = [blob(f"{number} {client}") for number in range(3)]
    assert await used(store, actor) == size_of(*files, *updates)
    digests = {number: blob(f"adam/v {number}").sha256 for number in (1, 2, 3)}
    assert await store.models.digests_in_use(list(digests.values())) == {digests[3]}
    copy = await world.training(actor, [client], model_id=training.model_id, aggregation=ADAM)
    assert await used(store, actor) == size_of(*files, *files, *updates)
    await store.models.remove(training.model_id, actor, world.now)
    # The copy needs it.
    assert await store.models.digests_in_use(list(digests.values())) == {digests[3]}
    await store.trainings.remove(copy.training_id, actor, force=True, now=world.now)
    await store.models.remove(copy.model_id, actor, world.now)
    assert await store.models.digests_in_use(list(digests.values())) == set()


async def test_a_round_waits_until_a_damaged_state_is_restored(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.reads = True
        actor, (client,), training = await coordination.running(1, aggregation=ADAM)
        training_id = training.training_id
        await coordination.submit(training_id, 0, client)
        await coordination.until(actor, training_id, lambda found: found.model_version == 1)
        path = coordination.context.blobs.files.local_path(damaged := blob("adam/v 1"))
        kept = path.read_bytes()
        path.unlink()
        await coordination.submit(training_id, 1, client)
        await coordination.clock.asleep(DAMAGE_DELAY)
        found = await coordination.coordinator.round_status.explain(training_id, None, actor)
        assert found.damage is not None
        assert f"objects/{damaged.sha256[:2]}/{damaged.sha256} " in found.damage
        assert "restored from a backup" in found.damage
        path.write_bytes(kept)
        coordination.clock.advance(DAMAGE_DELAY)
        after = await coordination.until(actor, training_id, lambda found: found.state.is_ended)
        assert (after.state, after.model_version) == (TrainingState.COMPLETED, 2)
        assert coordination.engine.jobs[-1].state.steps == {"adam/m": 1, "adam/v": 1}


async def test_an_aggregation_that_is_repeated_starts_from_the_same_state(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, aggregation=ADAM)
        training_id = training.training_id
        await coordination.submit(training_id, 0, client)
        await coordination.until(actor, training_id, lambda found: found.model_version == 1)
        coordination.engine.error = OSError("the disk fails")
        await coordination.submit(training_id, 1, client)
        await coordination.clock.asleep(RETRY_DELAY)
        coordination.engine.error = None
        coordination.clock.advance(RETRY_DELAY)
        await coordination.until(actor, training_id, lambda found: found.state.is_ended)
        first, *repeated = [job.state for job in coordination.engine.jobs]
        assert first == AggregationState()
        assert [one.steps for one in repeated] == [{"adam/m": 1, "adam/v": 1}] * 2
        assert {one.slots["adam/m"] for one in repeated} == {blob("adam/m 1")}


async def test_the_actor_sees_what_was_found_out_about_the_updates_that_counted(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, target_num_updates=1)
    for client in clients:
        await world.submit(training.training_id, 0, client)
    report = {
        clients[0]: UpdateFacts(0.25, 1.5, -0.5, 2, 0.125, selected=True),
        clients[1]: UpdateFacts(share=0.0),
    }
    view = await store.rounds.explain(training.training_id, 0, actor)
    assert [member.report for member in view.members] == [None, None]
    await commit(world, training.training_id, report=report)
    view = await store.rounds.explain(training.training_id, 0, actor)
    assert {member.user_id: member.report for member in view.members} == report


async def test_reports_come_from_the_engine(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await coordination.running(2, target_num_updates=1)
        for client in clients:
            await coordination.submit(training.training_id, 0, client)
        await coordination.until(actor, training.training_id, lambda found: found.state.is_ended)
        view = await store.rounds.explain(training.training_id, 0, actor)
        assert {member.user_id: member.report for member in view.members} == dict.fromkeys(
            clients, UpdateFacts(share=0.5, norm=1.5)
        )
