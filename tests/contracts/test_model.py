"""Models and their metrics, on both databases."""

import asyncio
import math
import sys
from dataclasses import replace

import pytest

from contracts.world import SPEC, World, blob, new_id, new_model
from fedround_server.domain.errors import ModelInUse, ModelNotFound, Quota
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import Model
from fedround_server.domain.report import (
    MAX_LABEL_MEANS,
    MAX_LABELS,
    LabelMean,
    MetricReport,
    MetricSpread,
    spreads,
)
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role
from fedround_server.store import Store

FIRST = (-1, "")


async def test_a_model_comes_back_as_it_was_stored(store: Store, world: World) -> None:
    owner = await world.user(Role.ACTOR)
    made = await store.models.create(new_id(), owner, new_model(), Quotas(), world.now)
    assert await store.models.get(made.model_id, owner) == made
    assert made.manifest == new_model().manifest
    assert (made.owner_id, made.latest.version, made.latest.blob) == (owner, 0, new_model().blob)


async def test_models_are_seen_by_their_owner_and_participants_only(store: Store, world: World) -> None:
    actor, (client, gone), training = await world.running(2)
    await store.trainings.remove_clients(training.training_id, actor, [gone], world.now)
    for user in (actor, client):
        assert (await store.models.get(training.model_id, user)).model_id == training.model_id
    for user in (gone, await world.user(Role.ACTOR), await world.user(Role.ADMIN)):
        for call in (store.models.get(training.model_id, user), store.models.get_version(training.model_id, 0, user)):
            with pytest.raises(ModelNotFound):
                await call
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    with pytest.raises(ModelNotFound):
        await store.models.get(training.model_id, client)


async def test_versions_that_are_not_there_are_not_found(store: Store, world: World) -> None:
    owner = await world.user(Role.ACTOR)
    made = await store.models.create(new_id(), owner, new_model(), Quotas(), world.now)
    with pytest.raises(ModelNotFound, match=r"version 1 .the latest is 0"):
        await store.models.get_version(made.model_id, 1, owner)


async def test_models_are_paged_from_the_newest(store: Store, world: World) -> None:
    owner = await world.user(Role.ACTOR)
    now = world.now
    made = [await store.models.create(new_id(), owner, new_model(), Quotas(), now) for _ in range(5)]
    seen: list[Model] = []
    while page := await store.models.page(owner, (now, seen[-1].model_id) if seen else None, 2):
        seen += page
    assert [replace(model, manifest=made[0].manifest) for model in seen] == sorted(made, key=by_id, reverse=True)
    assert not any(model.manifest for model in seen)


def by_id(model: Model) -> str:
    return model.model_id


async def test_a_model_is_removed_when_no_training_needs_it(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=1)
    with pytest.raises(ModelInUse) as raised:
        await store.models.remove(training.model_id, actor, world.now)
    assert raised.value.metadata["training_id"] == training.training_id
    with pytest.raises(ModelNotFound):
        await store.models.remove(training.model_id, client, world.now)
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    await store.models.remove(training.model_id, actor, world.now)
    for call in (store.models.get(training.model_id, actor), store.models.remove(training.model_id, actor, world.now)):
        with pytest.raises(ModelNotFound):
            await call
    assert await store.models.page(actor, None, 10) == []


async def test_a_model_is_either_trained_or_removed(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    for _ in range(25):
        model = await store.models.create(new_id(), actor, new_model(), Quotas(), world.now)
        created, removed = await asyncio.gather(
            world.create(actor, replace(SPEC, model_id=model.model_id)),
            store.models.remove(model.model_id, actor, world.now),
            return_exceptions=True,
        )
        assert isinstance(created, ModelNotFound) != isinstance(removed, ModelInUse)


async def test_files_are_in_use_as_long_as_something_needs_them(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=1)
    await world.submit(training.training_id, 0, client, "an update")
    await world.commit(training.training_id, "trained")
    files = {blob(content).sha256 for content in ("zeros", "an update", "trained")}
    among = [*files, blob("nobody's").sha256]
    assert await store.models.digests_in_use(among) == files
    assert await store.models.digests_in_use([blob("zeros").sha256]) == {blob("zeros").sha256}
    assert await store.models.digests_in_use([]) == set()
    await store.models.remove(training.model_id, actor, world.now)
    assert await store.models.digests_in_use(among) == {blob("an update").sha256}
    await store.trainings.remove(training.training_id, actor, force=False, now=world.now)
    assert await store.models.digests_in_use(among) == set()


async def test_a_posterior_is_in_use_with_its_version(store: Store, world: World) -> None:
    swag = Swag(samples=1, rank=0, every=0)
    actor, (client,), training = await world.running(1, target_num_updates=1, uncertainty=swag)
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    await world.submit(training.training_id, 1, client)
    assert await store.rounds.commit(training.training_id, 1, 1, blob("posterior"), world.now)
    assert await store.models.digests_in_use([blob("posterior").sha256]) == {blob("posterior").sha256}
    await store.models.remove(training.model_id, actor, world.now)
    assert await store.models.digests_in_use([blob("posterior").sha256]) == set()


async def test_a_version_carries_so_many_tags(store: Store, world: World) -> None:
    owner = await world.user(Role.ACTOR)
    made = await store.models.create(new_id(), owner, new_model(), Quotas(), world.now)
    for number in range(100):
        await store.models.tag(made.model_id, 0, f"tag{number}", owner, remove=False)
    full = (await store.models.tag(made.model_id, 0, "tag7", owner, remove=False)).tags
    with pytest.raises(Quota, match="100 tags"):
        await store.models.tag(made.model_id, 0, "one-more", owner, remove=False)
    assert (await store.models.page_versions(made.model_id, owner, None, 1))[0].tags == full
    await store.models.tag(made.model_id, 0, "tag7", owner, remove=True)
    assert "one-more" in (await store.models.tag(made.model_id, 0, "one-more", owner, remove=False)).tags


async def test_metrics_are_paged_and_private(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, target_num_updates=3)
    for number in range(2):
        for client in clients:
            await world.submit(training.training_id, number, client)
        await world.commit(training.training_id)
    # Not listed before the round is done.
    await world.submit(training.training_id, 2, clients[0])
    everything = await store.models.metrics(training.model_id, actor, FIRST, 100)
    assert [(report.round, report.reporter_id) for report in everything] == [
        (number, reporter) for number in range(2) for reporter in (None, *clients)
    ]
    own = await store.models.metrics(training.model_id, clients[0], FIRST, 100)
    assert [(report.round, report.reporter_id) for report in own] == [
        (number, reporter) for number in range(2) for reporter in (None, clients[0])
    ]
    for user, reports in ((actor, everything), (clients[0], own)):
        for limit in (1, 2, 3, 4):
            paged: list[MetricReport] = []
            while page := await store.models.metrics(training.model_id, user, behind(paged), limit):
                assert len(page) <= limit
                paged += page
            assert paged == reports
    with pytest.raises(ModelNotFound):
        await store.models.metrics(training.model_id, await world.user(), FIRST, 100)


async def test_participants_see_means_of_what_was_asked_for(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, metric_names=("accuracy",))
    reported = [{"accuracy": 0.5, "my own": 0.37}, {"accuracy": 1.0}]
    for client, metrics in zip(clients, reported, strict=True):
        await world.submit(training.training_id, 0, client, metrics=metrics)
    await world.commit(training.training_id)
    for client, metrics in zip(clients, reported, strict=True):
        await world.report(training.training_id, 1, client, 10, **metrics)
    await world.commit(training.training_id)
    for user, shown in (
        (actor, [{"accuracy": 0.75, "my own": 0.37}, *reported]),
        (clients[0], [{"accuracy": 0.75}, reported[0]]),
        (clients[1], [{"accuracy": 0.75}, reported[1]]),
    ):
        reports = await store.models.metrics(training.model_id, user, FIRST, 100)
        assert [report.metrics for report in reports] == shown * 2
        latest, first = await store.models.page_versions(training.model_id, user, None, 10)
        assert (latest.metrics, first.metrics) == (shown[0], {})


async def test_a_result_has_room_for_so_many_metrics(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, metric_names=("zz",))
    for client in clients:
        many = {f"{client} {number}": 1.0 for number in range(1000)}
        await world.submit(training.training_id, 0, client, metrics={"zz": 0.5, **many})
    await world.commit(training.training_id)
    means = (await store.models.metrics(training.model_id, actor, FIRST, 1))[0].metrics
    assert (len(means), means["zz"]) == (1000, 0.5)


async def test_the_owner_sees_how_values_are_spread(store: Store, world: World) -> None:
    actor, clients, training = await world.running(5, target_num_updates=1, metric_names=("accuracy",))
    values = [0.5, 1.0, 0.25, math.nan, 0.75]
    for client in clients:
        await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    for client, value, examples in zip(clients, values, (10, 30, 10, 5, 0), strict=True):
        await world.report(training.training_id, 1, client, examples, accuracy=value)
    await store.users.set_labels(clients[0], {"site": "north", "floor": "1"})
    await store.users.set_labels(clients[1], {"site": "north"})
    await store.users.set_labels(clients[2], {"site": "south"})
    await store.users.set_labels(clients[3], {"site": "east"})
    await world.commit(training.training_id)
    (mean,) = [
        one
        for one in await store.models.metrics(training.model_id, actor, FIRST, 100)
        if one.round == 1 and one.reporter_id is None
    ]
    assert mean.metrics == {"accuracy": 0.75}
    assert mean.spread == {
        "accuracy": MetricSpread(
            0.25,
            0.5,
            1.0,
            3,
            {
                "floor=1": LabelMean(0.5, 1),
                "site=north": LabelMean(0.875, 2),
                "site=south": LabelMean(0.25, 1),
            },
        )
    }
    others = await store.models.metrics(training.model_id, clients[0], FIRST, 100)
    assert [one.spread for one in others] == [{}] * len(others)


def test_means_by_label_are_of_the_most_frequent_labels_and_have_a_limit() -> None:
    reports = [
        ({f"m{name}": float(number) for name in range(20)}, 1, {"all": "x", "own": str(number)})
        for number in range(MAX_LABELS + 50)
    ]
    found = spreads(reports, [f"m{name}" for name in range(20)], ["m7"])
    assert list(found["m7"].by_label) == sorted(found["m7"].by_label)
    assert len(found["m7"].by_label) == MAX_LABELS
    assert found["m7"].by_label["all=x"] == LabelMean((MAX_LABELS + 49) / 2, MAX_LABELS + 50)
    assert sum(len(one.by_label) for one in found.values()) == MAX_LABEL_MEANS
    assert {one.num_reporters for one in found.values()} == {MAX_LABELS + 50}


def test_the_median_of_large_numbers_is_finite() -> None:
    large = sys.float_info.max
    assert spreads([({"m": large}, 1, {}), ({"m": large}, 1, {})], ["m"], [])["m"].median == large


def behind(reports: list[MetricReport]) -> tuple[int, str]:
    return (reports[-1].round, reports[-1].reporter_id or "") if reports else FIRST
