"""The models of shadow aggregations, on both databases."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregations import ADAM, FED_AVG, YOGI
from contracts.audits import check, recorded
from contracts.coordination import coordinating
from contracts.world import SPEC, World, blob, new_model
from fedround_server.aggregators.krum import Krum
from fedround_server.coordinator.aggregation import DAMAGE_DELAY, RETRY_DELAY
from fedround_server.domain.aggregation import Aggregation, AggregationState
from fedround_server.domain.errors import ModelInUse, Quota, StoreUnavailable
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import BaseAndDelta
from fedround_server.domain.shadow import ShadowResult
from fedround_server.domain.tensor_selection import TensorSelection
from fedround_server.domain.training import Training, TrainingState
from fedround_server.engine.executor import WorkerLost
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.store import Store
from fedround_server.store.queries.quota import stored_bytes
from fedround_server.store.transitions import commit_round

SHADOWED = replace(ADAM, shadows=(YOGI, Aggregation(Krum(f=0))))


def results(training: Training, number: int) -> list[ShadowResult]:
    first, second = training.shadow_model_ids
    state = AggregationState({slot: blob(f"{slot} {number}") for slot in YOGI.slots}, dict.fromkeys(YOGI.slots, number))
    return [
        ShadowResult(first, blob(f"yogi {number}"), state),
        ShadowResult(second, blob(f"model {number}"), problem="too few"),
    ]


async def commit(world: World, training: Training, number: int, shadows: list[ShadowResult] | None = None) -> Any:
    task = await world.store.rounds.find_aggregation(training.training_id)
    assert task is not None
    await world.store.rounds.commit(
        training.training_id,
        task.round.number,
        task.round.epoch,
        blob(f"version {number}"),
        world.now,
        shadows=results(training, number) if shadows is None else shadows,
    )
    return task


async def latest(store: Store, training: Training, actor: str) -> list[int]:
    return [(await store.models.get(id_, actor)).latest.version for id_ in training.shadow_model_ids]


async def test_a_commit_adds_a_version_to_each_shadow(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=3, aggregation=SHADOWED)
    assert await latest(store, training, actor) == [0, 0]
    for number in (1, 2):
        await world.submit(training.training_id, number - 1, client)
        task = await commit(world, training, number)
        steps = {} if number == 1 else dict.fromkeys(YOGI.slots, number - 1)
        assert [one.state.steps for one in task.shadows] == [steps, {}]
        assert [one.model_id for one in task.shadows] == list(training.shadow_model_ids)
    assert await latest(store, training, actor) == [2, 2]
    version = await store.models.get_version(training.shadow_model_ids[0], 1, actor)
    assert version.blob == blob("yogi 1")
    assert set(version.artifacts) == set(YOGI.slots)
    made = await recorded(store, "shadow_version_made")
    assert [(one["sha256"], one.get("problem")) for one in made[:2]] == [
        (blob("yogi 1").sha256, None),
        (blob("model 1").sha256, "too few"),
    ]
    assert [one.get("shadow") for one in await recorded(store, "version_made")] == [None, None]
    assert len(await recorded(store, "shadow_created")) == 2
    await check(store)


async def test_a_commit_that_fails_adds_no_version(store: Store, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, (client,), training = await world.running(1, aggregation=SHADOWED)
    await world.submit(training.training_id, 0, client)

    def broken(*_: object) -> None:
        raise StoreUnavailable("the database does not answer: try again")

    with monkeypatch.context() as patch:
        patch.setattr(commit_round, "record_work", broken)
        with pytest.raises(StoreUnavailable):
            await commit(world, training, 1)
    assert await latest(store, training, actor) == [0, 0]
    await commit(world, training, 1)
    assert await latest(store, training, actor) == [1, 1]
    # An aggregation of an earlier epoch commits nothing.
    before = await store.rounds.commit(
        training.training_id, 0, 1, blob("late"), world.now, shadows=results(training, 9)
    )
    assert not before
    assert await latest(store, training, actor) == [1, 1]


async def test_a_round_is_not_committed_without_its_shadows(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, aggregation=SHADOWED)
    await world.submit(training.training_id, 0, client)
    with pytest.raises(ValueError, match="without the results of its shadow"):
        await commit(world, training, 1, [])
    assert (await store.trainings.get(training.training_id, actor)).model_version == 0


async def test_the_models_of_shadows_count_in_the_quota(store: Store, world: World) -> None:
    actor = await world.user()
    tight = Quotas(10, max_stored_bytes_per_user=2 * len("zeros"))
    with pytest.raises(Quota):
        await store.trainings.create(
            "t",
            actor,
            replace(SPEC, aggregation=SHADOWED),
            new_model(),
            "m",
            tight,
            world.now,
            ["a", "b"],
        )
    assert await store.models.page(actor, None, 10) == []


async def test_versions_of_shadows_are_dropped_like_those_of_the_model(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=3, aggregation=SHADOWED, keep_versions=1)
    for number in (1, 2, 3):
        await world.submit(training.training_id, number - 1, client)
        await commit(world, training, number)
    digests = {
        content: blob(content).sha256 for number in (1, 2, 3) for content in (f"yogi {number}", f"yogi/m {number}")
    }
    needed = await store.models.digests_in_use(list(digests.values()))
    assert needed == {digests["yogi 3"], digests["yogi/m 3"]}
    files = ["version 3", "yogi 3", "yogi/m 3", "yogi/v 3", "model 3", *(f"{number} {client}" for number in range(3))]
    assert await store._database.run(lambda: stored_bytes(actor)) == sum(map(len, files))


async def test_a_running_training_needs_its_shadows(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=1, aggregation=SHADOWED)
    shadow = training.shadow_model_ids[0]
    with pytest.raises(ModelInUse):
        await store.models.remove(shadow, actor, world.now)
    copy = await world.training(actor, [client], model_id=shadow)
    assert copy.model_id != shadow
    await world.submit(training.training_id, 0, client)
    await commit(world, training, 1)
    await store.models.remove(shadow, actor, world.now)


async def run(coordination: Any, actor: str, training: Training, client: str, number: int) -> Training:
    await coordination.submit(training.training_id, number, client)
    found: Training = await coordination.until(
        actor, training.training_id, lambda found: found.model_version == number + 1
    )
    return found


async def test_the_engine_aggregates_each_shadow_around_the_model_of_the_round(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, aggregation=SHADOWED)
        for number in range(2):
            await run(coordination, actor, training, client, number)
        first, second = coordination.engine.jobs[:3], coordination.engine.jobs[3:]
        assert [job.aggregation.rule.name for job in second] == ["fed_avg", "fed_avg", "krum"]
        assert {job.model for job in second} == {blob("result 1")}
        assert {job.updates for job in second} == {(blob(f"1 {client}"),)}
        assert [job.state.steps for job in first] == [{}] * 3
        assert second[1].state.slots == {slot: blob(f"{slot} 2") for slot in YOGI.slots}
        assert await latest(store, training, actor) == [2, 2]


@pytest.mark.parametrize("error", [AggregationFailed("no aggregate"), WorkerLost("died"), TypeError("wrong")], ids=repr)
async def test_a_shadow_that_fails_does_not_hurt_the_round(store: Store, tmp_path: Path, error: Exception) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, aggregation=SHADOWED)
        await run(coordination, actor, training, client, 0)
        aggregate = coordination.engine.aggregate

        async def failing(job: AggregationJob) -> Any:
            if job.aggregation == YOGI:
                raise error
            return await aggregate(job)

        coordination.engine.aggregate = failing  # type: ignore[method-assign]
        done = await run(coordination, actor, training, client, 1)
        assert (done.state, done.failure) == (TrainingState.COMPLETED, None)
        before, after = [
            await store.models.get_version(training.shadow_model_ids[0], version, actor) for version in (1, 2)
        ]
        # It gets the model that the round started from, and keeps its state.
        assert after.blob == blob("result 1")
        assert {kind: one.blob for kind, one in after.artifacts.items()} == {
            kind: one.blob for kind, one in before.artifacts.items()
        }
        problems = [one.get("problem") for one in await recorded(store, "shadow_version_made")]
        assert problems[:2] == [None, None]
        assert problems[2]
        assert ("no aggregate" in problems[2]) is isinstance(error, AggregationFailed)
        assert problems[3] is None


async def test_a_damaged_state_of_a_shadow_is_waited_for(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.reads = True
        actor, (client,), training = await coordination.running(1, aggregation=SHADOWED)
        await run(coordination, actor, training, client, 0)
        path = coordination.context.blobs.files.local_path(blob("yogi/v 2"))
        kept = path.read_bytes()
        path.unlink()
        await coordination.submit(training.training_id, 1, client)
        await coordination.clock.asleep(DAMAGE_DELAY)
        path.write_bytes(kept)
        coordination.clock.advance(DAMAGE_DELAY)
        await coordination.until(actor, training.training_id, lambda found: found.state.is_ended)
        assert [one.get("problem") for one in await recorded(store, "shadow_version_made")] == [None] * 4


async def test_a_shadow_that_cannot_be_computed_now_is_repeated_with_the_round(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, target_num_updates=1, aggregation=SHADOWED)
        aggregate, failures = coordination.engine.aggregate, [OSError("the disk fails")]

        async def failing(job: AggregationJob) -> Any:
            if job.aggregation == YOGI and failures:
                raise failures.pop()
            return await aggregate(job)

        coordination.engine.aggregate = failing  # type: ignore[method-assign]
        await coordination.submit(training.training_id, 0, client)
        await coordination.clock.asleep(RETRY_DELAY)
        assert await latest(store, training, actor) == [0, 0]
        coordination.clock.advance(RETRY_DELAY)
        await coordination.until(actor, training.training_id, lambda found: found.state.is_ended)
        assert await latest(store, training, actor) == [1, 1]
        assert [one.get("problem") for one in await recorded(store, "shadow_version_made")] == [None] * 2


async def test_a_shadow_of_a_part_of_the_model_has_the_same_base(store: Store, tmp_path: Path) -> None:
    part = TensorSelection(trainable=("layer/weight",))
    shadowed = replace(FED_AVG, shadows=(Aggregation(Krum(f=0)),))
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(
            1, target_num_updates=3, aggregation=shadowed, tensors=part, keep_versions=1
        )
        (shadow,) = training.shadow_model_ids
        aggregate = coordination.engine.aggregate

        async def failing(job: AggregationJob) -> Any:
            if job.aggregation.rule.name == "krum" and len(coordination.engine.jobs) < 2:
                raise AggregationFailed("too few")
            return await aggregate(job)

        coordination.engine.aggregate = failing  # type: ignore[method-assign]
        for number in range(3):
            await run(coordination, actor, training, client, number)
            found = (await store.models.get_version(shadow, None, actor)).blob
            if number == 0:
                # Without an aggregate, it is the base.
                assert found == blob("zeros")
            else:
                assert isinstance(found, BaseAndDelta)
                assert found.base == blob("zeros")
        files = ["result 4", "result 5"]
        updates = [f"{number} {client}" for number in range(3)]
        expected = sum(map(len, files + updates)) + 2 * len("zeros")
        assert await store._database.run(lambda: stored_bytes(actor)) == expected
