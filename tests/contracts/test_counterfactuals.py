"""Side branches without some participants are stored as a whole or not at all, on both databases."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregations import ADAM
from contracts.audits import check, recorded
from contracts.coordination import Coordination, coordinating, lose
from contracts.world import new_id
from fedround_server.coordinator.counterfactuals import ComputedVersion
from fedround_server.domain.errors import Quota, StoreUnavailable, TrainingNotFound
from fedround_server.domain.model import BlobRef, Model
from fedround_server.domain.training import Training
from fedround_server.engine.executor import WorkerLost
from fedround_server.engine.jobs import AggregationJob
from fedround_server.store import Store
from fedround_server.store.queries.quota import stored_bytes
from fedround_server.store.verbs.counterfactual import CounterfactualVerbs


async def trained(coordination: Coordination, **spec: Any) -> tuple[str, list[str], Training]:
    """A training of two rounds that is over."""
    actor, clients, training = await coordination.running(2, target_num_updates=2, **spec)
    for number in range(2):
        for client in clients:
            await coordination.submit(training.training_id, number, client)
        await coordination.until(
            actor, training.training_id, lambda found, number=number: found.model_version == number + 1
        )
    return actor, clients, training


def files(coordination: Coordination) -> set[str]:
    root = coordination.context.blobs.files.local_path(BlobRef("0" * 64, 0)).parents[1]
    return {path.name for path in root.glob("*/*")}


async def replay(
    coordination: Coordination, training: Training, actor: str, without: list[str], name: str = "", request: str = ""
) -> list[ComputedVersion | Model]:
    replays = coordination.coordinator.replays.counterfactuals
    async with aclosing(replays.replay(training.training_id, without, name, request or None, actor)) as found:
        return [one async for one in found]


async def models(store: Store, actor: str) -> list[str]:
    return [one.name for one in await store.models.page(actor, None, 10)]


async def test_a_branch_is_stored_with_its_versions_and_their_states(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await trained(coordination, aggregation=ADAM)
        before = await store._database.run(lambda: stored_bytes(actor))
        *_, model = await replay(coordination, training, actor, clients[:1], "mine")
        assert isinstance(model, Model)
        assert (model.source_model_id, model.source_version, model.name) == (training.model_id, 0, "mine")
        # The first round is around the recorded model, the second around that of the branch.
        first, second = coordination.engine.jobs[2:]
        assert (first.origins, len(first.updates), first.state.steps) == ((), 1, {})
        assert second.model == BlobRef(second.model.sha256, len("result 3"))
        assert [origin.base for origin in second.origins] == [coordination.engine.jobs[1].model]
        assert second.state.steps == {"adam/m": 1, "adam/v": 1}
        version = await store.models.get_version(model.model_id, 2, actor)
        assert set(version.artifacts) == {"adam/m", "adam/v"}
        assert (await store.models.get(model.model_id, actor)).latest.version == 2
        made = await recorded(store, "counterfactual_version_made")
        assert [(one["round"], one["without"], one["num_updates"], one["exact"]) for one in made] == [
            (0, clients[:1], 1, True),
            (1, clients[:1], 1, False),
        ]
        names = ["zeros", *(f"{part} {number}" for number in (3, 4) for part in ("result", "adam/m", "adam/v"))]
        assert await store._database.run(lambda: stored_bytes(actor)) == before + sum(map(len, names))
        needed = {version.blob.sha256, *(one.blob.sha256 for one in version.artifacts.values())}
        assert await store.models.digests_in_use(list(needed)) == needed
        await store.models.remove(model.model_id, actor, coordination.clock.now())
        assert await store.models.digests_in_use(list(needed)) == set()
        await check(store)


async def test_what_is_not_to_be_stored_leaves_no_file(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await trained(coordination, aggregation=ADAM)
        before, known = files(coordination), await models(store, actor)
        found = await replay(coordination, training, actor, clients[:1])
        assert len(found) == 2
        assert (files(coordination), await models(store, actor)) == (before, known)


async def test_a_caller_that_goes_leaves_nothing(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await trained(coordination)
        before, known = files(coordination), await models(store, actor)
        coordination.engine.may_end.clear()
        running = asyncio.create_task(replay(coordination, training, actor, clients[:1], "mine"))
        while len(coordination.engine.jobs) < 3:
            await asyncio.sleep(0)
        running.cancel()
        coordination.engine.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (files(coordination), await models(store, actor)) == (before, known)


@pytest.mark.parametrize("error", [WorkerLost("died"), OSError("the disk fails")], ids=repr)
async def test_a_failure_leaves_nothing(store: Store, tmp_path: Path, error: Exception) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await trained(coordination)
        before, known = files(coordination), await models(store, actor)
        aggregate = coordination.engine.aggregate

        async def failing(job: AggregationJob) -> Any:
            if len(coordination.engine.jobs) == 3:
                raise error
            return await aggregate(job)

        coordination.engine.aggregate = failing  # type: ignore[method-assign]
        with pytest.raises(type(error)):
            await replay(coordination, training, actor, clients[:1], "mine")
        assert (files(coordination), await models(store, actor)) == (before, known)


async def test_a_branch_beyond_the_quota_leaves_nothing(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await trained(coordination)
        used = await store._database.run(lambda: stored_bytes(actor))
        before, known = files(coordination), await models(store, actor)
        replays = coordination.coordinator.replays.counterfactuals
        limits = replace(coordination.context.limits, max_stored_bytes_per_user=used + len("zeros"))
        replays._context = replace(coordination.context, limits=limits)
        with pytest.raises(Quota):
            await replay(coordination, training, actor, clients[:1], "mine")
        assert (files(coordination), await models(store, actor)) == (before, known)


@pytest.mark.parametrize("committed", [False, True])
async def test_a_request_whose_answer_was_lost_is_repeated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await trained(coordination)
        request = new_id()
        lose(monkeypatch, CounterfactualVerbs, "create", committed=committed)
        with pytest.raises(StoreUnavailable):
            await replay(coordination, training, actor, clients[:1], "mine", request)
        *computed, model = await replay(coordination, training, actor, clients[:1], "mine", request)
        assert len(computed) == (0 if committed else 2)
        assert isinstance(model, Model)
        assert (await models(store, actor)).count("mine") == 1
        version = await store.models.get_version(model.model_id, 2, actor)
        assert isinstance(version.blob, BlobRef)
        assert coordination.context.blobs.files.local_path(version.blob).exists()


async def test_a_training_that_is_removed_meanwhile_makes_no_branch(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await trained(coordination)
        before, known = files(coordination), await models(store, actor)
        replays = coordination.coordinator.replays.counterfactuals
        async with aclosing(replays.replay(training.training_id, clients[:1], "mine", None, actor)) as found:
            await anext(found)
            await store.trainings.remove(training.training_id, actor, force=True, now=coordination.clock.now())
            with pytest.raises(TrainingNotFound):
                await anext(found)
        assert (files(coordination), await models(store, actor)) == (before, known)
