"""Tokens and certificate names, on both databases."""

import asyncio
from datetime import datetime, timedelta

import pytest

from contracts.world import World, blob, new_id
from fedround_server.domain.errors import CertificateNameTaken, TokenNotFound, UserNotFound
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.token import Token
from fedround_server.domain.user import Role, User, UserView
from fedround_server.store import Store

HOUR = timedelta(hours=1)


async def owner_of(store: Store, token_hash: str) -> str | None:
    owner = (await store.credentials.identify(Credentials(token_hash))).owner
    return None if owner is None else owner.user_id


async def hashes(store: Store, user: str, now: datetime) -> list[str]:
    return [token.token_hash for token in (await store.credentials.view(user, now)).tokens]


async def test_a_user_is_found_by_its_token_or_its_certificate(store: Store, world: World) -> None:
    user = User(new_id(), "one", Role.ACTOR, world.now)
    token = Token("a" * 64, world.now, world.now + HOUR)
    view = UserView(user, ("a.example.org", "spiffe://example.org/a"), (token,))
    await store.users.create([view])
    assert await store.credentials.view(user.user_id, world.now) == view
    identify = store.credentials.identify
    assert await identify(Credentials("a" * 64)) == Identity(user, token)
    assert await identify(Credentials(None, ("a.example.org", "else"))) == Identity(certified=(user,))
    both = Credentials("a" * 64, ("a.example.org", "spiffe://example.org/a"))
    assert await identify(both) == Identity(user, token, (user,))
    assert await identify(Credentials("b" * 64, ("A.example.org",))) == Identity()


async def test_a_new_token_takes_the_place_of_the_others(store: Store, world: World) -> None:
    user = await world.user()
    await store.credentials.rotate(user, Token("c" * 64, world.now), None)
    assert await owner_of(store, blob(user).sha256) is None
    assert await owner_of(store, "c" * 64) == user
    with pytest.raises(UserNotFound):
        await store.credentials.rotate(new_id(), Token("d" * 64, world.now), None)


async def test_the_token_before_stays_for_an_overlap_and_no_other_one(store: Store, world: World) -> None:
    user = await world.user()
    first, now = blob(user).sha256, world.now
    await store.credentials.rotate(user, Token("b" * 64, now), now + HOUR)
    known = await store.credentials.identify(Credentials(first))
    assert known.token is not None
    assert known.token.expire_time == now + HOUR
    assert await hashes(store, user, now) == ["b" * 64, first]
    assert await hashes(store, user, now + HOUR) == ["b" * 64]
    later = world.now
    await store.credentials.rotate(user, Token("c" * 64, later), later + HOUR)
    assert await hashes(store, user, later) == ["c" * 64, "b" * 64]
    assert await owner_of(store, first) is None


async def test_an_overlap_makes_no_token_good_for_longer(store: Store, world: World) -> None:
    user, now = await world.user(), world.now
    await store.credentials.rotate(user, Token("b" * 64, now, now + HOUR), None)
    await store.credentials.rotate(user, Token("c" * 64, world.now), now + 2 * HOUR)
    assert await hashes(store, user, now + HOUR) == ["c" * 64]


async def test_a_token_that_expired_is_not_the_one_that_stays(store: Store, world: World) -> None:
    user, now = await world.user(), world.now
    await store.credentials.rotate(user, Token("b" * 64, now, now + HOUR), now + 3 * HOUR)
    later = now + 2 * HOUR
    await store.credentials.rotate(user, Token("c" * 64, later), later + HOUR)
    assert await hashes(store, user, later) == ["c" * 64, blob(user).sha256]
    assert await owner_of(store, "b" * 64) is None


async def test_of_many_rotations_at_once_two_tokens_are_left(store: Store, world: World) -> None:
    user, now = await world.user(), world.now
    tokens = [Token(blob(str(number)).sha256, now + number * HOUR) for number in range(8)]
    await asyncio.gather(*(store.credentials.rotate(user, token, now + 99 * HOUR) for token in tokens))
    assert len(await hashes(store, user, now)) == 2


async def test_a_token_is_revoked_by_its_id(store: Store, world: World) -> None:
    user, other = await world.users(2)
    token = Token("b" * 64, world.now)
    await store.credentials.rotate(user, token, world.now + HOUR)
    for owner, token_id in ((other, token.token_id), (user, "c" * 16)):
        with pytest.raises(TokenNotFound):
            await store.credentials.revoke(owner, token_id)
    await store.credentials.revoke(user, token.token_id)
    assert await hashes(store, user, world.now) == [blob(user).sha256]
    with pytest.raises(UserNotFound):
        await store.credentials.revoke(new_id(), token.token_id)


async def test_a_certificate_name_is_of_one_user(store: Store, world: World) -> None:
    first, second = await world.users(2)
    set_names = store.credentials.set_certificate_names
    await set_names(first, ["a", "b"])
    with pytest.raises(CertificateNameTaken, match="'b'"):
        await set_names(second, ["b", "c"])
    other = User(new_id(), "x", Role.CLIENT, world.now)
    with pytest.raises(CertificateNameTaken, match="'a'"):
        await store.users.create([UserView(other, ("a",), (Token("e" * 64, world.now),))])
    assert await owner_of(store, "e" * 64) is None
    await set_names(first, ["a", "d"])
    await set_names(second, ["b"])
    assert (await store.credentials.view(first, world.now)).certificate_names == ("a", "d")
    known = await store.credentials.identify(Credentials(None, ("a", "b")))
    assert {user.user_id for user in known.certified} == {first, second}
    with pytest.raises(UserNotFound):
        await set_names(new_id(), [])


async def test_of_several_who_want_a_certificate_name_one_gets_it(store: Store, world: World) -> None:
    users = await world.users(4)
    answers = await asyncio.gather(
        *(store.credentials.set_certificate_names(user, ["a"]) for user in users), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["CertificateNameTaken"] * 3 + ["NoneType"]


async def test_a_removed_users_certificate_name_is_free(store: Store, world: World) -> None:
    first, second = await world.users(2)
    await store.credentials.set_certificate_names(first, ["a"])
    await store.users.remove(first, world.now)
    assert await store.credentials.identify(Credentials(None, ("a",))) == Identity()
    await store.credentials.set_certificate_names(second, ["a"])


async def test_the_token_in_use_stays_when_a_rotation_is_repeated(store: Store, world: World) -> None:
    user = await world.user()
    used, until = blob(user).sha256, world.now + HOUR
    for lost in ("b" * 64, "c" * 64):
        await store.credentials.rotate(user, Token(lost, world.now), until, used)
    assert await hashes(store, user, world.now) == ["c" * 64, used]


async def test_an_admin_without_a_live_token_cannot_come_in(store: Store, world: World) -> None:
    admin = await world.user(Role.ADMIN)
    await store.credentials.rotate(admin, Token("b" * 64, world.now, world.now + HOUR), None)
    assert await store.credentials.admins(world.now) == ([admin], True)
    assert await store.credentials.admins(world.now + HOUR) == ([admin], False)
    await store.credentials.set_certificate_names(admin, ["admin.example.org"])
    assert await store.credentials.admins(world.now + HOUR) == ([admin], True)
