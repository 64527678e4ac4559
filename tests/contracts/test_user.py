"""Users and their tokens, on both databases."""

import asyncio

import pytest

from contracts.world import World, blob, new_id
from fedround_server.domain.errors import LastAdmin, UnknownClients, UserExists, UserNotFound
from fedround_server.domain.training import TrainingState
from fedround_server.domain.user import Role, User
from fedround_server.store import Store


async def test_a_user_is_found_by_its_token(store: Store, world: World) -> None:
    user = User(new_id(), "ward 7 — öä", Role.ACTOR, world.now)
    await store.users.create(user, "a" * 64)
    assert await store.users.get(user.user_id) == user
    assert await store.users.find_by_token("a" * 64) == user
    assert await store.users.find_by_token("b" * 64) is None


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


async def test_a_new_token_revokes_the_old_one(store: Store, world: World) -> None:
    user = await world.user()
    await store.users.replace_token(user, "c" * 64, world.now)
    assert await store.users.find_by_token(blob(user).sha256) is None
    found = await store.users.find_by_token("c" * 64)
    assert found is not None
    assert found.user_id == user
    with pytest.raises(UserNotFound):
        await store.users.replace_token(new_id(), "d" * 64, world.now)


async def test_a_removed_user_is_gone_and_its_name_free(store: Store, world: World) -> None:
    user = await world.user(name="one")
    assert await store.users.remove(user, world.now) == []
    assert await store.users.find_by_token(blob(user).sha256) is None
    for call in (store.users.get(user), store.users.remove(user, world.now)):
        with pytest.raises(UserNotFound):
            await call
    assert await world.user(name="one") != user


async def test_the_last_admin_stays(store: Store, world: World) -> None:
    first = await world.user(Role.ADMIN)
    assert await store.users.has_admin()
    with pytest.raises(LastAdmin):
        await store.users.remove(first, world.now)
    await world.user(Role.ADMIN)
    await store.users.remove(first, world.now)
    assert await store.users.has_admin()


async def test_of_two_last_admins_one_stays(store: Store, world: World) -> None:
    keeper = await world.user(Role.ADMIN)
    for _ in range(20):
        other = await world.user(Role.ADMIN)
        answers = await asyncio.gather(
            *(store.users.remove(admin, world.now) for admin in (keeper, other)), return_exceptions=True
        )
        assert sorted(type(answer).__name__ for answer in answers) == ["LastAdmin", "list"]
        keeper = keeper if isinstance(answers[0], LastAdmin) else other
    assert await store.users.has_admin()


async def test_an_admin_is_removed_while_another_one_registers_it(store: Store, world: World) -> None:
    await world.user(Role.ADMIN)
    for _ in range(20):
        gone, actor = sorted([await world.user(Role.ADMIN), await world.user(Role.ADMIN)])
        removed, created = await asyncio.gather(
            store.users.remove(gone, world.now), world.training(actor, [gone]), return_exceptions=True
        )
        assert isinstance(removed, list)
        assert isinstance(created, UnknownClients) != (removed != [])


async def test_a_removed_user_leaves_its_trainings(store: Store, world: World) -> None:
    actor, (gone, stays), training = await world.running(2)
    await world.submit(training.training_id, 0, stays)
    left = await store.users.remove(gone, world.now)
    assert left == [training.training_id]
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert [update.user_id for update in task.updates] == [stays]
    assert (await store.trainings.get(training.training_id, actor)).participant_ids == (stays,)


async def test_the_last_participant_may_be_removed_as_a_user(store: Store, world: World) -> None:
    actor, (only,), training = await world.running(1)
    await store.users.remove(only, world.now)
    after = await store.trainings.get(training.training_id, actor)
    assert after.state is TrainingState.ERROR
    assert after.failure is not None
    assert after.failure.reason == "NO_PARTICIPANTS"
