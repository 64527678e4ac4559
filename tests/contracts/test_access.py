"""A call ends with what let it in; on both databases."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.coordination import ToldClock
from fedround_server.coordinator import Context
from fedround_server.coordinator.user import Users
from fedround_server.domain.errors import FieldInvalid, TokenExpired, TokenInvalid, TokenMissing
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.limits import Limits
from fedround_server.domain.token import hash_token
from fedround_server.domain.user import Role, User
from fedround_server.store import Store
from fedround_server.wakeups import Hub

NOTHING: Any = None
HOUR = timedelta(hours=1)
MOMENT = timedelta(milliseconds=1)


@pytest.fixture
def clock() -> ToldClock:
    return ToldClock()


@pytest.fixture
def users(store: Store, clock: ToldClock) -> Users:
    return Users(Context(store, NOTHING, NOTHING, Hub(), NOTHING, clock=clock))


class Visit:
    """A call that stays until it is ended."""

    def __init__(self, users: Users, credentials: Credentials) -> None:
        self.entered = asyncio.Event()
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(users, credentials))

    async def _stay(self, users: Users, credentials: Credentials) -> User:
        async with users.admit(credentials) as user:
            self.entered.set()
            await self._leave.wait()
            return user

    async def leave(self) -> User:
        self._leave.set()
        return await self.task


async def visit(users: Users, credentials: Credentials) -> Visit:
    visit = Visit(users, credentials)
    await visit.entered.wait()
    return visit


async def made(users: Users, *names: str, role: Role = Role.CLIENT, **options: Any) -> tuple[User, Credentials]:
    view, token = await users.create(names[0], role, options.get("lifetime"), names)
    return view.user, Credentials(hash_token(token))


Change = Callable[[Users, User], Coroutine[Any, Any, object]]
ROTATE: Change = lambda users, user: users.rotate_token(user, user.user_id, None, None)  # noqa: E731
REMOVE: Change = lambda users, user: users.remove(user.user_id, force=False)  # noqa: E731
RENAME: Change = lambda users, user: users.set_certificate_names(user.user_id, ["else"])  # noqa: E731


async def revoke_all(users: Users, user: User) -> None:
    for token in (await users.view(user.user_id)).tokens:
        await users.revoke_token(user, user.user_id, token.token_id)


@pytest.mark.parametrize("change", [ROTATE, REMOVE, revoke_all])
async def test_calls_end_with_the_token_that_let_them_in(users: Users, change: Change) -> None:
    user, token = await made(users, "one")
    _, other = await made(users, "other")
    staying, ended = await visit(users, other), [await visit(users, token) for _ in range(3)]
    await change(users, user)
    for one in ended:
        with pytest.raises(TokenInvalid):
            await one.task
    assert (await staying.leave()).name == "other"


async def test_a_call_by_certificate_outlives_no_name(users: Users) -> None:
    user, token = await made(users, "one")
    certified, by_token = await visit(users, Credentials(None, ("one",))), await visit(users, token)
    await RENAME(users, user)
    with pytest.raises(TokenMissing):
        await certified.task
    assert await by_token.leave() == user
    certified = await visit(users, Credentials(None, ("else",)))
    await REMOVE(users, user)
    with pytest.raises(TokenMissing):
        await certified.task


async def test_the_call_that_revokes_its_own_token_answers(users: Users) -> None:
    user, token = await made(users, "one")
    async with users.admit(token):
        new = await users.rotate_token(user, user.user_id, None, None)
    with pytest.raises(TokenInvalid):
        async with users.admit(token):
            pass
    async with users.admit(Credentials(hash_token(new))) as found:
        assert found == user


class LateAnswers:
    """The store's verbs about credentials; the first look is answered with what was true before a commit."""

    def __init__(self, store: Store) -> None:
        self.commit: Callable[[], Coroutine[Any, Any, object]] | None = None
        self._verbs = store.credentials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._verbs, name)

    async def identify(self, credentials: Credentials) -> Identity:
        known = await self._verbs.identify(credentials)
        commit, self.commit = self.commit, None
        if commit is not None:
            await commit()
        return known


async def test_a_call_that_comes_while_its_token_is_revoked(store: Store, clock: ToldClock) -> None:
    answers = LateAnswers(store)
    late: Any = SimpleNamespace(users=store.users, credentials=answers)
    users = Users(Context(late, NOTHING, NOTHING, Hub(), NOTHING, clock=clock))
    user, token = await made(users, "one")
    answers.commit = lambda: ROTATE(users, user)
    with pytest.raises(TokenInvalid):
        async with users.admit(token):
            pass


async def test_a_call_ends_when_its_token_expires(users: Users) -> None:
    _, token = await made(users, "one", lifetime=MOMENT)
    with pytest.raises(TokenExpired):
        await (await visit(users, token)).task


async def test_a_call_ends_with_the_overlap(users: Users, clock: ToldClock) -> None:
    user, token = await made(users, "one")
    before = await visit(users, token)
    new = await users.rotate_token(user, user.user_id, MOMENT, None)
    with pytest.raises(TokenExpired):
        await before.task
    stays = await visit(users, Credentials(hash_token(new)))
    clock.advance(HOUR)
    with pytest.raises(TokenExpired):
        async with users.admit(token):
            pass
    assert await stays.leave() == user


async def test_what_a_call_raises_is_raised(users: Users) -> None:
    _, token = await made(users, "one")
    with pytest.raises(TimeoutError, match="its own"):
        async with users.admit(token):
            raise TimeoutError("its own")


async def test_when_tokens_were_used_last(users: Users, clock: ToldClock) -> None:
    user, token = await made(users, "one")
    used = {}
    for _ in range(4):
        async with users.admit(token):
            used[token.token_hash] = clock.now()
        token = Credentials(hash_token(await users.rotate_token(user, user.user_id, HOUR, None)))
        clock.advance(MOMENT)
    new, before = (await users.view(user.user_id)).tokens
    assert users.last_use(user.user_id, new) is None
    assert users.last_use(user.user_id, before) == used[before.token_hash]


async def test_lifetimes(store: Store, clock: ToldClock) -> None:
    limits = Limits(token_lifetime=HOUR, max_token_lifetime=2 * HOUR)
    users = Users(Context(store, NOTHING, NOTHING, Hub(), NOTHING, limits, clock=clock))
    kept: list[str] = []
    assert await users.bootstrap(kept.append)
    async with users.admit(Credentials(hash_token(kept[0]))) as admin:
        (token,) = (await users.view(admin.user_id)).tokens
    assert token.expire_time is None
    view, _ = await users.create("usual", Role.CLIENT, None, ())
    assert view.tokens[0].expire_time == clock.now() + HOUR
    view, _ = await users.create("long", Role.CLIENT, 2 * HOUR, ())
    assert view.tokens[0].expire_time == clock.now() + 2 * HOUR
    with pytest.raises(FieldInvalid, match="lifetime: is longer than 2:00:00"):
        await users.create("longer", Role.CLIENT, 2 * HOUR + MOMENT, ())
    with pytest.raises(FieldInvalid, match="lifetime"):
        await users.rotate_token(admin, view.user.user_id, None, 3 * HOUR)
    assert len((await users.view(view.user.user_id)).tokens) == 1
