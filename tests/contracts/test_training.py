"""Trainings and who takes part in them, on both databases."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aggregations import fed_prox
from contracts.world import SPEC, World, blob, new_id, new_model
from fedround_server.domain.errors import (
    FieldInvalid,
    LastParticipant,
    ModelNotFound,
    NoParticipants,
    NotActor,
    Quota,
    TrainingEnded,
    TrainingNotFound,
    TrainingNotInitial,
    TrainingRunning,
    UnknownClients,
)
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import MAX_TENSORS, Dtype, NewModel, TensorSpec
from fedround_server.domain.policy import LateUpdates, RoundPolicy
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Evaluation, Training, TrainingSpec, TrainingState
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role
from fedround_server.store import Store
from sizes import size

RACES = size("RACES", 8)


async def test_a_training_comes_back_as_it_was_made(store: Store, world: World) -> None:
    actor, clients = await world.user(Role.ACTOR), await world.users(3)
    spec = TrainingSpec(
        name="Härte-Test",
        description="über alles",
        target_num_updates=7,
        metric_names=("loss", "accuracy"),
        client_ids=(clients[2], clients[0]),
        aggregation=fed_prox(0.1),
        round_policy=RoundPolicy(2, timedelta(seconds=1.5), LateUpdates.REJECT),
        evaluation=Evaluation.FINAL_ONLY,
        max_num_examples=2**31,
        request_id=new_id(),
    )
    made = await world.create(actor, spec)
    assert made == await store.trainings.get(made.training_id, actor)
    shown = replace(made, spec=replace(spec, client_ids=()), participant_ids=(clients[0],))
    assert shown == await store.trainings.get(made.training_id, clients[0])
    assert (made.spec, made.actor_id, made.state) == (spec, actor, TrainingState.INITIAL)
    assert made.participant_ids == (clients[0], clients[2])
    assert (made.round, made.updates_arrived, made.updates_expected, made.model_version) == (0, 0, 0, 0)
    version = await store.models.get_version(made.model_id, None, actor)
    assert (version.version, version.blob) == (0, new_model().blob)


async def test_a_rejected_training_leaves_nothing(store: Store, world: World) -> None:
    actor, clients = await world.user(Role.ACTOR), await world.users(2)
    unrelated = new_id()
    cases: list[tuple[type[Exception], TrainingSpec, int]] = [
        (UnknownClients, replace(SPEC, client_ids=(*clients, unrelated)), 10),
        (ModelNotFound, replace(SPEC, model_id=new_id()), 10),
        (Quota, SPEC, 0),
    ]
    for error, spec, quota in cases:
        with pytest.raises(error):
            await store.trainings.prepare(actor, spec, Quotas(quota))
        with pytest.raises(error):
            await world.create(actor, spec, quota=quota)
    assert await store.trainings.page(actor, as_actor=True, before=None, limit=10) == []
    assert await store.models.page(actor, None, 10) == []


async def test_moments_must_fit_into_a_file(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    layers = MAX_TENSORS // 22
    manifest = {f"layer.{number}": TensorSpec(Dtype.F32, (1,)) for number in range(layers + 1)}
    swag = replace(SPEC, uncertainty=Swag(samples=1, softmax=False, every=0, rank=20))
    large = NewModel("large", "", manifest, blob("large"))
    with pytest.raises(FieldInvalid, match="choose a lower one"):
        await store.trainings.create(new_id(), actor, swag, large, new_id(), Quotas(), world.now)
    assert await store.models.page(actor, None, 10) == []
    del manifest["layer.0"]
    await store.trainings.create(new_id(), actor, swag, large, new_id(), Quotas(), world.now)


async def test_unknown_clients_are_all_named(store: Store, world: World) -> None:
    actor, known = await world.user(Role.ACTOR), await world.user()
    gone = await world.user()
    await store.users.remove(gone, world.now)
    # More than one question to the database holds.
    unknown = sorted([*(new_id() for _ in range(600)), gone])
    few = unknown[5:10]
    with pytest.raises(UnknownClients) as raised:
        await store.trainings.prepare(actor, replace(SPEC, client_ids=(known, *unknown)), Quotas())
    assert raised.value.metadata["client_ids"].split(", ") == unknown[:60]
    assert raised.value.metadata["count"] == "601"
    assert "and 581 more" in raised.value.message
    with pytest.raises(UnknownClients) as raised:
        await store.trainings.prepare(actor, replace(SPEC, client_ids=(known, *few)), Quotas())
    assert all(unrelated in raised.value.message for unrelated in few)


async def test_ended_trainings_do_not_count_against_the_quota(store: Store, world: World) -> None:
    actor, (client,), _ = await world.running(1, target_num_updates=1)
    with pytest.raises(Quota, match="1 trainings"):
        await world.create(actor, SPEC, quota=1)
    training = (await store.trainings.page(actor, as_actor=True, before=None, limit=1))[0]
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    await world.create(actor, SPEC, quota=1)


@pytest.mark.attack
async def test_the_quota_holds_under_concurrency(store: Store, world: World) -> None:
    for _ in range(RACES):
        actor = await world.user(Role.ACTOR)
        answers = await asyncio.gather(*(world.create(actor, SPEC, quota=2) for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in answers].count(Training) == 2
        assert [type(answer) for answer in answers].count(Quota) == 3


@pytest.mark.attack
async def test_a_user_is_either_registered_or_removed(store: Store, world: World) -> None:
    for running in (False, True) * (RACES // 2):
        actor, clients, training = await world.running(2)
        gone = await world.user()
        if not running:
            training = await world.training(actor, clients)
        registered, removed = await asyncio.gather(
            store.trainings.register(training.training_id, actor, [gone], world.now),
            store.users.remove(gone, world.now),
            return_exceptions=True,
        )
        assert isinstance(registered, UnknownClients) or removed == [training.training_id]
        after = await store.trainings.get(training.training_id, actor)
        assert after.participant_ids == tuple(clients)


@pytest.mark.attack
async def test_a_user_is_either_in_a_new_training_or_removed(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    for _ in range(RACES):
        gone = await world.user()
        created, removed = await asyncio.gather(
            world.training(actor, [gone]), store.users.remove(gone, world.now), return_exceptions=True
        )
        if isinstance(created, Training):
            assert removed == [created.training_id]
        else:
            assert isinstance(created, UnknownClients)


@pytest.mark.attack
async def test_actors_may_register_each_other_at_once(store: Store, world: World) -> None:
    for _ in range(RACES):
        actors = [await world.user(Role.ACTOR) for _ in range(3)]
        made = await asyncio.gather(*(world.training(actor, [*actors]) for actor in actors))
        assert {training.participant_ids for training in made} == {tuple(sorted(actors))}


@pytest.mark.attack
async def test_one_request_makes_one_training(store: Store, world: World) -> None:
    other = await world.user(Role.ACTOR)
    for _ in range(RACES):
        actor = await world.user(Role.ACTOR)
        spec = replace(SPEC, request_id=new_id())
        made = await asyncio.gather(
            *(world.create(actor, spec, quota=1) for _ in range(4)),
            *(store.trainings.prepare(actor, spec, Quotas(1)) for _ in range(4)),
        )
        assert len({training.training_id for training in made if training is not None}) == 1
        assert len(await store.models.page(actor, None, 10)) == 1
    assert await store.trainings.prepare(actor, spec, Quotas(1)) == made[0]
    assert (await world.create(other, spec)).training_id != made[0].training_id
    await store.trainings.remove(made[0].training_id, actor, force=False, now=world.now)
    with pytest.raises(FieldInvalid, match="request_id"):
        await world.create(actor, spec)


async def test_a_model_in_use_is_copied(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    model = await store.models.create(new_id(), actor, new_model(), Quotas(), world.now)
    first = await world.create(actor, replace(SPEC, model_id=model.model_id))
    second = await world.create(actor, replace(SPEC, model_id=model.model_id))
    assert first.model_id == model.model_id
    copy = await store.models.get(second.model_id, actor)
    assert copy.model_id != model.model_id
    assert (copy.source_model_id, copy.manifest, copy.latest.blob) == (
        model.model_id,
        model.manifest,
        model.latest.blob,
    )


async def test_a_copy_begins_with_the_latest_version(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=1)
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id, "trained")
    second = await world.create(actor, replace(SPEC, model_id=training.model_id))
    assert (await store.models.get_version(second.model_id, 0, actor)).blob == blob("trained")


async def test_foreign_and_missing_trainings_are_indistinguishable(store: Store, world: World) -> None:
    actor, unrelated = await world.user(Role.ACTOR), await world.user(Role.ACTOR)
    made = await world.training(actor, [])
    removed = await world.training(unrelated, [])
    await store.trainings.remove(removed.training_id, unrelated, force=False, now=world.now)
    for training_id in (made.training_id, removed.training_id, new_id()):
        calls: list[Any] = [
            store.trainings.get(training_id, unrelated),
            store.trainings.start(training_id, unrelated, None, world.now),
            store.trainings.register(training_id, unrelated, [unrelated], world.now),
            store.trainings.remove_clients(training_id, unrelated, [unrelated], world.now),
            store.rounds.explain(training_id, None, unrelated),
            world.submit(training_id, 0, unrelated),
        ]
        if training_id != removed.training_id:
            calls.append(store.trainings.remove(training_id, unrelated, force=True, now=world.now))
        for call in calls:
            with pytest.raises(TrainingNotFound, match=training_id):
                await call


async def test_participants_may_look_but_not_steer(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    clients = await world.users(2)
    made = await world.training(actor, clients)
    for call in (
        store.trainings.start(made.training_id, clients[0], None, world.now),
        store.trainings.remove(made.training_id, clients[0], force=True, now=world.now),
        store.trainings.register(made.training_id, clients[0], [], world.now),
        store.trainings.remove_clients(made.training_id, clients[0], clients, world.now),
    ):
        with pytest.raises(NotActor):
            await call
    left, closed = await store.trainings.remove_clients(made.training_id, clients[0], [clients[0]], world.now)
    assert (left.participant_ids, left.num_participants, closed) == ((), 1, False)
    with pytest.raises(TrainingNotFound):
        await store.trainings.get(made.training_id, clients[0])


async def test_pages_go_from_the_newest_to_the_oldest(store: Store, world: World) -> None:
    actor, client = await world.user(Role.ACTOR), await world.user()
    now = world.now
    made: list[Training] = [
        # Some at the same time: the id breaks ties.
        await store.trainings.create(
            new_id(), actor, replace(SPEC, client_ids=(client,)), new_model(), new_id(), Quotas(), now
        )
        for _ in range(3)
    ]
    made += [await world.training(actor, [client]) for _ in range(4)]
    await world.training(actor, [])
    for user, as_actor, count in ((actor, True, 8), (client, False, 7)):
        seen: list[Training] = []
        while page := await store.trainings.page(
            user,
            as_actor=as_actor,
            before=(seen[-1].create_time, seen[-1].training_id) if seen else None,
            limit=2,
        ):
            seen += page
        keys = [(training.create_time, training.training_id) for training in seen]
        assert len(set(keys)) == count
        assert keys == sorted(keys, reverse=True)
        # Lists count the participants, and do not name them.
        for training in seen:
            whole = await store.trainings.get(training.training_id, user)
            assert training == replace(whole, participant_ids=(), spec=replace(whole.spec, client_ids=()))
            assert training.num_participants == len(whole.participant_ids)
    assert await store.trainings.page(client, as_actor=True, before=None, limit=10) == []


async def test_registering_twice_is_registering_once(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    clients = await world.users(2)
    made = await world.training(actor, [])
    for _ in range(2):
        made = await store.trainings.register(made.training_id, actor, [clients[1], clients[0], clients[1]], world.now)
        assert made.participant_ids == tuple(clients)
    with pytest.raises(UnknownClients):
        await store.trainings.register(made.training_id, actor, [await world.user(), new_id()], world.now)
    with pytest.raises(UnknownClients):
        await store.trainings.remove_clients(made.training_id, actor, [clients[0], new_id()], world.now)
    assert (await store.trainings.get(made.training_id, actor)).participant_ids == tuple(clients)


async def test_concurrent_registrations_all_count(store: Store, world: World) -> None:
    actor, clients = await world.user(Role.ACTOR), await world.users(12)
    made = await world.training(actor, [])
    overlapping = [clients[start : start + 4] for start in range(9)]
    await asyncio.gather(*(store.trainings.register(made.training_id, actor, some, world.now) for some in overlapping))
    assert (await store.trainings.get(made.training_id, actor)).participant_ids == tuple(clients)


@pytest.mark.parametrize("as_request", [False, True])
async def test_of_twenty_starts_one_wins(store: Store, world: World, as_request: bool) -> None:
    actor, clients = await world.user(Role.ACTOR), await world.users(2)
    made = await world.training(actor, clients)
    request = new_id() if as_request else None
    answers = await asyncio.gather(
        *(store.trainings.start(made.training_id, actor, request, world.now) for _ in range(20)),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, Training)]
    lost = [answer for answer in answers if isinstance(answer, TrainingNotInitial)]
    assert (len(won), len(lost)) == ((20, 0) if as_request else (1, 19))
    after = await store.trainings.get(made.training_id, actor)
    assert (after.state, after.round, after.updates_expected, after.last_sequence) == (TrainingState.ONGOING, 0, 2, 2)
    if not as_request:
        assert {raised.metadata["state"] for raised in lost} == {"ONGOING"}


async def test_a_start_wants_participants(store: Store, world: World) -> None:
    actor, clients = await world.user(Role.ACTOR), await world.users(2)
    for some, policy in (([], RoundPolicy()), (clients[:1], RoundPolicy(min_updates=2))):
        made = await world.training(actor, some, round_policy=policy)
        with pytest.raises(NoParticipants):
            await store.trainings.start(made.training_id, actor, None, world.now)
        assert (await store.trainings.get(made.training_id, actor)).state is TrainingState.INITIAL
        assert await store.rounds.current(made.training_id) is None


async def test_a_running_training_keeps_one_participant(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2)
    with pytest.raises(LastParticipant):
        await store.trainings.remove_clients(training.training_id, actor, clients, world.now)
    await store.trainings.remove_clients(training.training_id, actor, clients[:1], world.now)
    with pytest.raises(LastParticipant):
        await store.trainings.remove_clients(training.training_id, clients[1], clients[1:], world.now)
    assert (await store.trainings.get(training.training_id, actor)).participant_ids == (clients[1],)


async def test_a_training_that_is_not_started_may_lose_every_participant(store: Store, world: World) -> None:
    actor, clients = await world.user(Role.ACTOR), await world.users(2)
    made = await world.training(actor, clients)
    left, _ = await store.trainings.remove_clients(made.training_id, actor, clients, world.now)
    assert left.participant_ids == ()


async def test_an_ended_training_changes_no_more(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=1)
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    for call in (
        store.trainings.register(training.training_id, actor, [client], world.now),
        store.trainings.remove_clients(training.training_id, actor, [client], world.now),
    ):
        with pytest.raises(TrainingEnded, match="COMPLETED"):
            await call
    with pytest.raises(TrainingNotInitial, match="COMPLETED"):
        await store.trainings.start(training.training_id, actor, None, world.now)


async def test_a_running_training_is_removed_with_force_only(store: Store, world: World) -> None:
    actor, (client, _), training = await world.running(2)
    with pytest.raises(TrainingRunning):
        await store.trainings.remove(training.training_id, actor, force=False, now=world.now)
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    for user in (actor, client):
        with pytest.raises(TrainingNotFound):
            await store.trainings.get(training.training_id, user)
    with pytest.raises(TrainingNotFound):
        await world.submit(training.training_id, 0, client)
    assert await store.rounds.unfinished() == []
    assert (await store.models.get(training.model_id, actor)).owner_id == actor


async def test_removing_a_training_stops_its_aggregation(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1)
    await world.submit(training.training_id, 0, client)
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert task.round.state is RoundState.AGGREGATING
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    assert await store.rounds.find_aggregation(training.training_id) is None
    assert not await store.rounds.commit(training.training_id, 0, task.round.epoch, blob("late"), world.now)
    assert (await store.models.get_version(training.model_id, None, actor)).version == 0
