"""Versions that are stored as a base and a delta: what refers to their files, and for how long, on both databases."""

from dataclasses import replace
from pathlib import Path

import pytest

from contracts.audits import recorded
from contracts.blobs import put
from contracts.coordination import coordinating
from contracts.world import MANIFEST, SPEC, World, blob, new_id
from damage import flip
from fedround_server.coordinator.aggregation import DAMAGE_DELAY
from fedround_server.coordinator.served_files import ModelPart
from fedround_server.domain.errors import FieldInvalid, ModelDamaged, ModelNotFound, Quota
from fedround_server.domain.event import RoundStarted
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import PINNED, BaseAndDelta, BlobRef, VersionFile, blobs_of
from fedround_server.domain.tensor_selection import TensorSelection
from fedround_server.domain.training import Training, TrainingState
from fedround_server.domain.update import NewUpdate
from fedround_server.store import Store
from fedround_server.store.queries.quota import stored_bytes
from fedround_server.store.queries.submission import Admission

PART = TensorSelection(("layer/*",))
BASE = blob("zeros")


def version(number: int) -> BaseAndDelta:
    """A version of a training that works on the first model."""
    delta = blob(f"delta {number}")
    return BaseAndDelta(blob(f"whole {number}").sha256, BASE.size_bytes + delta.size_bytes, BASE, delta)


async def make_version(store: Store, world: World, training: Training, user: str, file: VersionFile) -> None:
    """Runs a round of one participant."""
    current = await store.rounds.current(training.training_id)
    assert current is not None
    await world.submit(training.training_id, current.number, user)
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert await store.rounds.commit(training.training_id, current.number, task.round.epoch, file, world.now)


async def stored(store: Store, user_id: str) -> int:
    return await store._database.run(lambda: stored_bytes(user_id))


async def in_use(store: Store, *files: VersionFile) -> set[str]:
    named = {one.sha256 for file in files for one in (file, *blobs_of(file))}
    return await store.models.digests_in_use(sorted(named))


async def test_a_version_is_read_as_it_was_made(store: Store, world: World) -> None:
    actor, (user,), training = await world.running(1, target_num_updates=3, tensors=PART)
    assert (await store.trainings.get(training.training_id, user)).spec.tensors == PART
    for number in (1, 2):
        await make_version(store, world, training, user, version(number))
    model_id = training.model_id
    found = await store.models.get_version(model_id, 2, user)
    assert found.blob == version(2)
    assert isinstance(found.blob, BaseAndDelta)
    views = await store.models.page_versions(model_id, actor, None, 10)
    assert [view.version.blob for view in views] == [version(2), version(1), BASE]
    assert (await store.models.get(model_id, actor)).latest.blob == version(2)
    task_model = (await store.rounds.current(training.training_id)).model_version  # type: ignore[union-attr]
    assert task_model == 2
    events = [event.payload for event in (await store.events.poll(training.training_id, user, 0, 100)).events]
    started = [payload for payload in events if isinstance(payload, RoundStarted)]
    assert [one.model.blob for one in started] == [BASE, version(1), version(2)]
    assert {one.tensors for one in started} == {PART}
    entries = await recorded(store, "version_made")
    assert [(one["sha256"], one["base_sha256"], one["delta_sha256"]) for one in entries] == [
        (version(number).sha256, BASE.sha256, version(number).delta.sha256) for number in (1, 2)
    ]


async def test_an_update_has_the_tensors_that_are_trained(store: Store, world: World) -> None:
    selection = TensorSelection(private=("count",))
    _, (user,), training = await world.running(1, tensors=selection)
    new = NewUpdate(training.training_id, 0, user, blob("update"), 1, {})
    admission = await store.submissions.admit(new)
    assert isinstance(admission, Admission)
    assert admission.tensors.manifest == {"layer/weight": MANIFEST["layer/weight"]}
    assert admission.tensors.private == {"count"}


@pytest.mark.parametrize(
    ("selection", "field"),
    [
        (TensorSelection(("nothing",)), "spec.tensors.trainable"),
        (TensorSelection(private=("nothing",)), "spec.tensors.private"),
        (TensorSelection(("count",), ("c*",)), "spec.tensors.private"),
        (TensorSelection(private=("*",)), "spec.tensors.private"),
    ],
)
async def test_a_selection_that_does_not_fit_creates_nothing(
    store: Store, world: World, selection: TensorSelection, field: str
) -> None:
    actor = await world.user()
    with pytest.raises(FieldInvalid) as caught:
        await world.training(actor, [], tensors=selection)
    assert caught.value.field == field
    assert await store.models.page(actor, None, 10) == []
    assert await stored(store, actor) == 0


@pytest.mark.parametrize("keep_versions", [0, 1, 2])
async def test_a_base_counts_once_and_stays_as_long_as_a_version_needs_it(
    store: Store, world: World, keep_versions: int
) -> None:
    actor, (user,), training = await world.running(1, target_num_updates=4, tensors=PART, keep_versions=keep_versions)
    updates = 0
    for number in (1, 2, 3):
        updates += blob(f"{number - 1} {user}").size_bytes
        await make_version(store, world, training, user, version(number))
        kept = [one for one in range(1, number + 1) if not keep_versions or one > number - keep_versions]
        deltas = sum(version(one).delta.size_bytes for one in kept)
        assert await stored(store, actor) == BASE.size_bytes + deltas + updates
        files = [BASE, *map(version, range(1, number + 1))]
        assert await in_use(store, *files) == {BASE.sha256} | {version(one).delta.sha256 for one in kept}
    if keep_versions:
        with pytest.raises(ModelNotFound, match="its file was dropped by keep_versions"):
            await store.models.get_version(training.model_id, 0, user)
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    await store.models.remove(training.model_id, actor, world.now)
    assert await in_use(store, *map(version, range(1, 4)), BASE) == set()
    assert await stored(store, actor) == 0


async def test_a_whole_file_is_not_needed_for_a_version_with_a_delta(store: Store, world: World) -> None:
    actor, (user,), training = await world.running(1, target_num_updates=2, tensors=PART)
    await make_version(store, world, training, user, version(1))
    assert version(1).sha256 not in await in_use(store, version(1))
    # Who downloads the version and uploads it as a model of its own has that file.
    other = await world.create(actor, replace(SPEC, model_id=training.model_id, model_version=1))
    assert version(1).sha256 not in await in_use(store, version(1))
    assert other.model_id != training.model_id


async def test_a_copy_of_such_a_version_has_a_base_of_its_own(store: Store, world: World) -> None:
    actor, (user,), training = await world.running(1, target_num_updates=2, tensors=PART)
    await make_version(store, world, training, user, version(1))
    before = await stored(store, actor)
    copy = await world.create(
        actor, replace(SPEC, model_id=training.model_id, client_ids=(user,), keep_versions=1, target_num_updates=3)
    )
    assert (await store.models.get_version(copy.model_id, 0, user)).blob == version(1)
    size = BASE.size_bytes + version(1).delta.size_bytes
    assert await stored(store, actor) == before + size
    # Its versions are whole: without a selection, and the last delta takes the base along.
    await store.trainings.start(copy.training_id, actor, None, world.now)
    await make_version(store, world, copy, user, blob("whole again"))
    update_bytes = blob(f"0 {user}").size_bytes
    assert await stored(store, actor) == before + blob("whole again").size_bytes + update_bytes
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    await store.models.remove(training.model_id, actor, world.now)
    assert await in_use(store, version(1), BASE) == set()


async def test_a_tagged_delta_keeps_its_base(store: Store, world: World) -> None:
    actor, (user,), training = await world.running(1, target_num_updates=3, tensors=PART, keep_versions=1)
    await make_version(store, world, training, user, version(1))
    await store.models.tag(training.model_id, 1, PINNED, actor, remove=False)
    await make_version(store, world, training, user, version(2))
    await make_version(store, world, training, user, version(3))
    assert await in_use(store, BASE, *map(version, (1, 2, 3))) == {
        BASE.sha256,
        version(1).delta.sha256,
        version(3).delta.sha256,
    }
    assert (await store.models.get_version(training.model_id, 1, user)).blob == version(1)


async def test_checksums_of_bases_and_deltas_are_kept(store: Store, world: World) -> None:
    actor, (user,), training = await world.running(1, target_num_updates=2, tensors=PART)
    await make_version(store, world, training, user, version(1))
    for one in (BASE, version(1).delta):
        await store.models.keep_checksums(BlobRef(one.sha256, one.size_bytes, b"sums"))
    found = (await store.models.get_version(training.model_id, 1, actor)).blob
    assert [one.checksums for one in blobs_of(found)] == [b"sums", b"sums"]


async def test_the_quota_counts_a_copy_with_its_base(store: Store, world: World) -> None:
    actor, (user,), training = await world.running(1, target_num_updates=2, tensors=PART)
    await make_version(store, world, training, user, version(1))
    quotas = Quotas(max_stored_bytes_per_user=await stored(store, actor) + BASE.size_bytes)
    spec = replace(SPEC, model_id=training.model_id)
    with pytest.raises(Quota, match="your files would have"):
        await store.trainings.create(new_id(), actor, spec, None, new_id(), quotas, world.now)
    assert len(await store.models.page(actor, None, 10)) == 1


@pytest.mark.parametrize("part", ["base", "delta"])
async def test_a_round_waits_until_a_damaged_part_of_its_model_is_restored(
    store: Store, tmp_path: Path, part: str
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (user,), training = await coordination.running(1, target_num_updates=2, tensors=PART)
        await coordination.submit(training.training_id, 0, user)
        await coordination.until(actor, training.training_id, lambda now: now.model_version == 1)
        file = (await store.models.get_version(training.model_id, 1, user)).blob
        damaged: BlobRef = getattr(file, part)
        path = coordination.context.blobs.files.local_path(damaged)
        intact = path.read_bytes()
        flip(path, 0)
        models = coordination.coordinator.models
        served = await models.find_file(training.model_id, 1, user, "", ModelPart[part.upper()], ())
        with pytest.raises(ModelDamaged, match=f"the {part} of version 1 of the model"):
            [chunk async for chunk in models.read(served, 0)]
        coordination.engine.reads = True
        await coordination.submit(training.training_id, 1, user)
        await coordination.clock.asleep(DAMAGE_DELAY)
        assert damaged.sha256 in coordination.coordinator.rounds.aggregations.damage[training.training_id]
        put(coordination.context.blobs, intact)
        coordination.clock.advance(DAMAGE_DELAY)
        ended = await coordination.until(actor, training.training_id, lambda now: now.state.is_ended)
        assert (ended.state, ended.model_version) == (TrainingState.COMPLETED, 2)
