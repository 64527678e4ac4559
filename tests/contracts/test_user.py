"""Users, on both databases."""

import asyncio

import pytest

from contracts.audits import chained
from contracts.world import SPEC, World, blob, new_id, new_model
from fedround_server.domain.errors import (
    LastAdmin,
    ModelNotFound,
    TokenInvalid,
    TrainingNotFound,
    TrainingRunning,
    UnknownClients,
    UserExists,
    UserNotFound,
)
from fedround_server.domain.event import TrainingRemoved
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.limits import Quotas
from fedround_server.domain.token import Token
from fedround_server.domain.training import Training, TrainingState
from fedround_server.domain.user import Role, User, UserView
from fedround_server.store import Store


async def stored_models(store: Store, owner: str) -> list[str]:
    return [model.model_id for model in await store.models.page(owner, None, 10)]


async def ended_training(store: Store, world: World, actor: str, client: str) -> Training:
    """A training that is complete, with its model and the updates of its round."""
    ended = await world.training(actor, [client], target_num_updates=1)
    await store.trainings.start(ended.training_id, actor, None, world.now)
    await world.submit(ended.training_id, 0, client)
    await world.commit(ended.training_id)
    return ended


async def test_a_user_is_found(store: Store, world: World) -> None:
    user = User(new_id(), "ward 7 — öä", Role.ACTOR, world.now)
    await store.users.create([UserView(user, (), (Token("a" * 64, world.now),))])
    assert await store.users.get(user.user_id) == user


async def test_a_name_is_taken_once(store: Store, world: World) -> None:
    await world.user(name="one")
    with pytest.raises(UserExists, match="'one'"):
        await world.user(name="one")
    assert len(await store.users.page(None, "", 10)) == 1


async def test_users_are_paged_by_name_and_role(store: Store, world: World) -> None:
    for number in (3, 1, 2):
        await world.user(Role.CLIENT, f"client {number}")
    await world.user(Role.ACTOR, "actor")
    assert [user.name for user in await store.users.page(None, "", 2)] == ["actor", "client 1"]
    assert [user.name for user in await store.users.page(None, "client 1", 9)] == ["client 2", "client 3"]
    assert [user.name for user in await store.users.page(Role.ACTOR, "", 9)] == ["actor"]


async def test_a_removed_user_is_gone_and_its_name_free(store: Store, world: World) -> None:
    user = await world.user(name="one")
    assert await store.users.remove(user, world.now) == []
    assert await store.credentials.identify(Credentials(blob(user).sha256)) == Identity()
    for call in (store.users.get(user), store.users.remove(user, world.now)):
        with pytest.raises(UserNotFound):
            await call
    assert await world.user(name="one") != user


async def test_the_last_admin_stays(store: Store, world: World) -> None:
    first = await world.user(Role.ADMIN)
    assert await store.credentials.admins(world.now) == ([first], True)
    with pytest.raises(LastAdmin):
        await store.users.remove(first, world.now)
    other = await world.user(Role.ADMIN)
    await store.users.remove(first, world.now)
    assert await store.credentials.admins(world.now) == ([other], True)


async def test_of_two_last_admins_one_stays(store: Store, world: World) -> None:
    keeper = await world.user(Role.ADMIN)
    for _ in range(20):
        other = await world.user(Role.ADMIN)
        answers = await asyncio.gather(
            *(store.users.remove(admin, world.now) for admin in (keeper, other)), return_exceptions=True
        )
        assert sorted(type(answer).__name__ for answer in answers) == ["LastAdmin", "list"]
        keeper = keeper if isinstance(answers[0], LastAdmin) else other
    assert await store.credentials.admins(world.now) == ([keeper], True)


async def test_an_admin_is_removed_while_another_one_registers_it(store: Store, world: World) -> None:
    await world.user(Role.ADMIN)
    for _ in range(20):
        gone, actor = sorted([await world.user(Role.ADMIN), await world.user(Role.ADMIN)])
        removed, created = await asyncio.gather(
            store.users.remove(gone, world.now), world.training(actor, [gone]), return_exceptions=True
        )
        assert isinstance(removed, list)
        assert isinstance(created, UnknownClients) != (removed != [])


async def test_a_removed_user_is_removed_from_its_trainings(store: Store, world: World) -> None:
    actor, (gone, stays), training = await world.running(2)
    await world.submit(training.training_id, 0, stays)
    left = await store.users.remove(gone, world.now)
    assert left == [training.training_id]
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert [update.user_id for update in task.updates] == [stays]
    assert (await store.trainings.get(training.training_id, actor)).participant_ids == (stays,)


async def test_who_steers_running_trainings_is_removed_with_force_only(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1)
    before = await store.trainings.get(training.training_id, client)
    with pytest.raises(TrainingRunning, match="1 running") as raised:
        await store.users.remove(actor, world.now)
    assert raised.value.metadata["count"] == "1"
    assert (await store.users.get(actor)).user_id == actor
    assert (await store.credentials.identify(Credentials(blob(actor).sha256))).owner is not None
    assert await store.trainings.get(training.training_id, client) == before


async def test_a_removed_actors_trainings_go_with_it_but_those_that_are_ended(store: Store, world: World) -> None:
    actor, (client,), running = await world.running(1)
    waiting = await world.training(actor, [client])
    ended = await ended_training(store, world, actor, client)
    other = await world.training(await world.user(Role.ACTOR), [actor, client])
    removed = await store.users.remove(actor, world.now, force=True)
    assert removed == sorted(training.training_id for training in (running, waiting, other))
    for training in (running, waiting):
        with pytest.raises(TrainingNotFound):
            await store.trainings.get(training.training_id, client)
        events = (await store.events.poll(training.training_id, client, 0, 100)).events
        assert events[-1].payload == TrainingRemoved()
    assert (await store.trainings.get(ended.training_id, client)).state is TrainingState.COMPLETED
    assert (await store.trainings.get(other.training_id, client)).participant_ids == (client,)
    assert await store.rounds.unfinished() == []


async def test_nothing_is_created_in_a_removed_users_name(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    await store.users.remove(actor, world.now)
    for call in (
        store.trainings.prepare(actor, SPEC, Quotas()),
        world.create(actor, SPEC),
        store.models.create(new_id(), actor, new_model(), Quotas(), world.now),
    ):
        with pytest.raises(TokenInvalid):
            await call


async def test_an_actor_is_either_removed_or_creates_what_is_removed_with_it(store: Store, world: World) -> None:
    client = await world.user()
    for _ in range(20):
        actor = await world.user(Role.ACTOR)
        removed, created = await asyncio.gather(
            store.users.remove(actor, world.now), world.training(actor, [client]), return_exceptions=True
        )
        if isinstance(created, Training):
            assert removed == [created.training_id]
        else:
            assert isinstance(created, TokenInvalid)
    assert await store.trainings.page(client, as_actor=False, before=None, limit=10) == []


async def test_a_user_is_removed_once(store: Store, world: World) -> None:
    for role in (Role.CLIENT, Role.ADMIN):
        await world.user(Role.ADMIN)
        user = await world.user(role)
        answers = await asyncio.gather(*(store.users.remove(user, world.now) for _ in range(4)), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["UserNotFound"] * 3 + ["list"]


async def test_those_who_take_part_in_each_others_trainings_are_removed_at_once(store: Store, world: World) -> None:
    for _ in range(20):
        users = [await world.user(Role.ACTOR) for _ in range(3)]
        for user in users:
            await world.training(user, users)
        answers = await asyncio.gather(*(store.users.remove(user, world.now) for user in users))
        assert sorted(len(answer) for answer in answers)[-1] == 3


async def test_the_last_participant_may_be_removed_as_a_user(store: Store, world: World) -> None:
    actor, (only,), training = await world.running(1)
    await store.users.remove(only, world.now)
    after = await store.trainings.get(training.training_id, actor)
    assert after.state is TrainingState.ERROR
    assert after.failure is not None
    assert after.failure.reason == "NO_PARTICIPANTS"


async def test_models_and_ended_trainings_are_removed_with_their_user_if_asked(store: Store, world: World) -> None:
    actor, client = await world.user(Role.ACTOR), await world.user()
    ended = await ended_training(store, world, actor, client)
    unused = await store.models.create(new_id(), actor, new_model("unused"), Quotas(), world.now)
    other = await world.user(Role.ACTOR)
    kept = await ended_training(store, world, other, client)
    files = [blob("unused").sha256]
    assert await store.models.digests_in_use(files) == set(files)
    assert await store.users.remove(actor, world.now, remove_models=True) == [ended.training_id]
    assert await stored_models(store, actor) == []
    assert await store.models.digests_in_use(files) == set()
    with pytest.raises(TrainingNotFound):
        await store.trainings.get(ended.training_id, client)
    with pytest.raises(ModelNotFound):
        await store.models.get(ended.model_id, client)
    removed = [entry for entry in await chained(store) if entry.action in ("training_removed", "model_removed")]
    assert {entry.training_id for entry in removed} == {"", ended.training_id}
    assert {entry.model_id for entry in removed if entry.action == "model_removed"} == {ended.model_id, unused.model_id}
    assert (await store.trainings.get(kept.training_id, client)).state is TrainingState.COMPLETED
    assert await stored_models(store, other) == [kept.model_id]


async def test_what_a_removed_user_left_is_removed_later(store: Store, world: World) -> None:
    actor, client = await world.user(Role.ACTOR), await world.user()
    ended = await ended_training(store, world, actor, client)
    assert await store.users.remove(actor, world.now) == []
    assert (await store.models.get(ended.model_id, client)).latest.version == 1
    removals = (store.users.remove(actor, world.now, remove_models=True) for _ in range(3))
    answers = await asyncio.gather(*removals)
    assert sorted(answers) == [[], [], [ended.training_id]]
    assert await stored_models(store, actor) == []
    with pytest.raises(UserNotFound):
        await store.users.remove(new_id(), world.now, remove_models=True)
