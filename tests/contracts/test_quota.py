"""What a user's files count, and what it may have, on both databases."""

from dataclasses import replace

import pytest

from contracts.world import SPEC, World, blob, new_id, new_model
from fedround_server.domain.errors import Quota
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import BlobRef, NewModel
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.queries.quota import stored_bytes
from fedround_server.store.tables.schema import ArtifactRow, ModelRow, ModelVersionRow, UpdateRow


def sized(size: int) -> NewModel:
    return replace(new_model(), blob=BlobRef(blob(f"{size}").sha256, size))


async def count(store: Store, user_id: str) -> int:
    return await store._database.run(lambda: stored_bytes(user_id))


def kept() -> int:
    """What all files have that some row needs."""
    versions = ModelVersionRow.select().join(ModelRow, on=(ModelRow.model_id == ModelVersionRow.model_id))
    needed = versions.where(ModelVersionRow.stored, ModelRow.remove_time.is_null())
    same = (ModelVersionRow.model_id == ArtifactRow.model_id) & (ModelVersionRow.version == ArtifactRow.version)
    artifacts = ArtifactRow.select().join(ModelVersionRow, on=same)
    artifacts = artifacts.join(ModelRow, on=(ModelRow.model_id == ArtifactRow.model_id))
    belonging = artifacts.where(ModelVersionRow.stored, ModelRow.remove_time.is_null())
    return sum(row.size_bytes for rows in (needed, belonging, UpdateRow.select()) for row in rows)


@pytest.mark.parametrize("keep_versions", [0, 2])
async def test_the_count_follows_versions_posteriors_retention_and_updates(
    store: Store, world: World, keep_versions: int
) -> None:
    swag = Swag(samples=1, softmax=False, every=1, rank=1)
    actor, clients, training = await world.running(
        2, target_num_updates=6, keep_versions=keep_versions, uncertainty=swag, metric_names=("loss",)
    )
    assert await count(store, actor) == new_model().blob.size_bytes
    while (current := await store.rounds.current(training.training_id)) is not None and not current.state.is_over:
        for client in clients:
            if current.kind.name == "EVALUATE":
                await world.report(training.training_id, current.number, client, 1, loss=0.5)
            else:
                await world.submit(training.training_id, current.number, client)
        task = await store.rounds.find_aggregation(training.training_id)
        assert task is not None
        result = None if task.round.kind.name == "EVALUATE" else blob(f"result {task.round.number}")
        await store.rounds.commit(training.training_id, task.round.number, task.round.epoch, result, world.now)
        assert await count(store, actor) == await store._database.run(kept)
    assert (await store.trainings.get(training.training_id, actor)).model_version == 6
    # What two of its things have counts twice, and what is removed does not count.
    before = await count(store, actor)
    copy = await world.create(actor, replace(SPEC, model_id=training.model_id, client_ids=()))
    latest = await store.models.get_version(copy.model_id, None, actor)
    assert await count(store, actor) == before + latest.blob.size_bytes
    for made in (copy, training):
        await store.trainings.remove(made.training_id, actor, force=True, now=world.now)
        await store.models.remove(made.model_id, actor, world.now)
    assert await count(store, actor) == 0


async def test_files_are_kept_up_to_the_quota(store: Store, world: World) -> None:
    actor, other = await world.user(Role.ACTOR), await world.user(Role.ACTOR)
    quotas = Quotas(max_stored_bytes_per_user=100)
    first = await store.models.create(new_id(), actor, sized(60), quotas, world.now)
    assert await store.models.prepare(actor, new_id(), 40, quotas) is None
    with pytest.raises(Quota, match="would have 101 bytes, you may have 100") as error:
        await store.models.prepare(actor, new_id(), 41, quotas)
    assert error.value.metadata == {"limit": "max_stored_bytes_per_user"}
    with pytest.raises(Quota):
        await store.models.create(new_id(), actor, sized(41), quotas, world.now)
    with pytest.raises(Quota):
        await store.trainings.prepare(actor, SPEC, quotas, 41)
    with pytest.raises(Quota):
        await store.trainings.create(new_id(), actor, SPEC, sized(41), new_id(), quotas, world.now)
    assert await count(store, actor) == 60
    assert await store.trainings.page(actor, as_actor=True, before=None, limit=10) == []
    await store.models.create(new_id(), other, sized(100), quotas, world.now)
    await store.trainings.create(new_id(), actor, SPEC, sized(40), new_id(), quotas, world.now)
    await store.models.remove(first.model_id, actor, world.now)
    await store.models.create(new_id(), actor, sized(60), quotas, world.now)


async def test_an_upload_that_is_repeated_is_answered_whatever_the_quota(store: Store, world: World) -> None:
    actor, quotas = await world.user(Role.ACTOR), Quotas(max_stored_bytes_per_user=100)
    model = replace(sized(100), upload_id=new_id())
    made = await store.models.create(new_id(), actor, model, quotas, world.now)
    assert await store.models.prepare(actor, model.upload_id, 100, quotas) == made
    assert await store.models.create(new_id(), actor, model, quotas, world.now) == made


async def test_a_running_round_goes_on_beyond_the_quota(store: Store, world: World) -> None:
    actor, clients, training = await world.running(1)
    quotas = Quotas(max_stored_bytes_per_user=await count(store, actor))
    await world.submit(training.training_id, 0, clients[0])
    assert await world.commit(training.training_id)
    with pytest.raises(Quota):
        await store.trainings.prepare(actor, replace(SPEC, model_id=training.model_id), quotas)
    with pytest.raises(Quota):
        await store.models.prepare(actor, None, 0, quotas)


async def test_all_actors_have_so_many_open_trainings(store: Store, world: World) -> None:
    quotas = Quotas(max_open_trainings=2)
    one, two = await world.user(Role.ACTOR), await world.user(Role.ACTOR)
    made = [await world.training(actor, []) for actor in (one, two)]
    for actor in (one, two):
        with pytest.raises(Quota, match="the server has 2 trainings that have not ended") as error:
            await store.trainings.prepare(actor, SPEC, quotas)
        assert error.value.metadata == {"limit": "max_open_trainings"}
        with pytest.raises(Quota):
            await store.trainings.create(new_id(), actor, SPEC, new_model(), new_id(), quotas, world.now)
    await store.trainings.remove(made[0].training_id, one, force=False, now=world.now)
    await store.trainings.create(new_id(), two, SPEC, new_model(), new_id(), quotas, world.now)
