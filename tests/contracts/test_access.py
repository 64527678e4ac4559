"""A call ends when its credentials are revoked or expire; on both databases."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.coordination import ManualClock
from fedround_server.coordinator import Context
from fedround_server.coordinator.access import Access
from fedround_server.coordinator.user import Users
from fedround_server.domain.errors import (
    CertificateAmbiguous,
    FieldInvalid,
    StoreUnavailable,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
)
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.limits import Limits
from fedround_server.domain.token import Token, hash_token
from fedround_server.domain.user import Role, User
from fedround_server.store import Store
from fedround_server.wakeups import Hub

NOTHING: Any = None
HOUR = timedelta(hours=1)
MOMENT = timedelta(milliseconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def context(store: Store, clock: ManualClock) -> Context:
    return Context(store, NOTHING, NOTHING, Hub(), NOTHING, clock=clock)


@pytest.fixture
def access(context: Context) -> Access:
    return Access(context)


@pytest.fixture
def users(context: Context, access: Access) -> Users:
    return Users(context, access)


class OpenCall:
    """A call that lasts until it is finished or ended with an error."""

    def __init__(self, access: Access, credentials: Credentials) -> None:
        self.admitted = asyncio.Event()
        self._finish = asyncio.Event()
        self.task = asyncio.create_task(self._run(access, credentials))

    async def _run(self, access: Access, credentials: Credentials) -> User:
        async with access.admit(credentials) as user:
            self.admitted.set()
            await self._finish.wait()
            return user

    async def finish(self) -> User:
        self._finish.set()
        return await self.task


async def open_call(access: Access, credentials: Credentials) -> OpenCall:
    call = OpenCall(access, credentials)
    await call.admitted.wait()
    return call


async def created(users: Users, *names: str, role: Role = Role.CLIENT, **options: Any) -> tuple[User, Credentials]:
    view, token = await users.create(names[0], role, options.get("lifetime"), names)
    return view.user, Credentials(hash_token(token))


Change = Callable[[Users, User], Coroutine[Any, Any, object]]
ROTATE: Change = lambda users, user: users.rotate_token(user, user.user_id, None, None)  # noqa: E731
REMOVE: Change = lambda users, user: users.remove(user.user_id, force=False, remove_models=False)  # noqa: E731
RENAME: Change = lambda users, user: users.set_certificate_names(user.user_id, ["else"])  # noqa: E731


async def revoke_all(users: Users, user: User) -> None:
    for token in (await users.view(user.user_id)).tokens:
        await users.revoke_token(user, user.user_id, token.token_id)


@pytest.mark.parametrize("change", [ROTATE, REMOVE, revoke_all])
async def test_calls_end_with_their_token(users: Users, access: Access, change: Change) -> None:
    user, token = await created(users, "one")
    _, other = await created(users, "other")
    kept, ended = await open_call(access, other), [await open_call(access, token) for _ in range(3)]
    await change(users, user)
    for one in ended:
        with pytest.raises(TokenInvalid):
            await one.task
    assert (await kept.finish()).name == "other"


async def test_a_call_with_a_certificate_ends_with_its_name(users: Users, access: Access) -> None:
    user, token = await created(users, "one")
    certified, by_token = await open_call(access, Credentials(None, ("one",))), await open_call(access, token)
    await RENAME(users, user)
    with pytest.raises(TokenMissing):
        await certified.task
    assert await by_token.finish() == user
    certified = await open_call(access, Credentials(None, ("else",)))
    await REMOVE(users, user)
    with pytest.raises(TokenMissing):
        await certified.task


async def test_the_call_that_revokes_its_own_token_gets_its_response(users: Users, access: Access) -> None:
    user, token = await created(users, "one")
    async with access.admit(token):
        new = await users.rotate_token(user, user.user_id, None, None)
    with pytest.raises(TokenInvalid):
        async with access.admit(token):
            pass
    async with access.admit(Credentials(hash_token(new))) as found:
        assert found == user


class StaleIdentities:
    """The store's verbs about credentials; the first query returns what was true before a commit."""

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


async def test_a_call_that_starts_while_its_token_is_revoked(store: Store, clock: ManualClock) -> None:
    verbs = StaleIdentities(store)
    stale: Any = SimpleNamespace(users=store.users, credentials=verbs, is_fresh=True)
    context = Context(stale, NOTHING, NOTHING, Hub(), NOTHING, clock=clock)
    access = Access(context)
    users = Users(context, access)
    user, token = await created(users, "one")
    verbs.commit = lambda: ROTATE(users, user)
    with pytest.raises(TokenInvalid):
        async with access.admit(token):
            pass


async def admitted(access: Access, credentials: Credentials) -> User:
    async with access.admit(credentials) as user:
        return user


async def test_a_known_caller_is_not_read_again(access: Access, users: Users) -> None:
    _, token = await created(users, "one")
    assert await admitted(access, token) is await admitted(access, token)


@pytest.mark.parametrize("change", [ROTATE, REMOVE, revoke_all])
async def test_a_known_token_ends_at_once(users: Users, access: Access, change: Change) -> None:
    user, token = await created(users, "one")
    await admitted(access, token)
    await change(users, user)
    with pytest.raises(TokenInvalid):
        await admitted(access, token)


@pytest.mark.parametrize("change", [RENAME, REMOVE])
async def test_a_known_certificate_ends_at_once(users: Users, access: Access, change: Change) -> None:
    user, _ = await created(users, "one")
    certificate = Credentials(None, ("one",))
    await admitted(access, certificate)
    await change(users, user)
    with pytest.raises(TokenMissing):
        await admitted(access, certificate)


async def test_a_known_token_expires(users: Users, access: Access, clock: ManualClock) -> None:
    _, token = await created(users, "one", lifetime=HOUR)
    await admitted(access, token)
    clock.advance(HOUR)
    with pytest.raises(TokenExpired):
        await admitted(access, token)


async def test_a_known_token_ends_with_an_overlap(users: Users, access: Access, clock: ManualClock) -> None:
    user, token = await created(users, "one")
    await admitted(access, token)
    await users.rotate_token(user, user.user_id, HOUR, None)
    await admitted(access, token)
    clock.advance(HOUR)
    with pytest.raises(TokenExpired):
        await admitted(access, token)


async def test_labels_of_a_known_caller(users: Users, access: Access) -> None:
    user, token = await created(users, "one")
    await admitted(access, token)
    await users.set_labels(user.user_id, {"site": "north"})
    assert (await admitted(access, token)).labels == {"site": "north"}


async def test_the_name_in_a_known_certificate_becomes_that_of_another_user(users: Users, access: Access) -> None:
    _, token = await created(users, "one")
    with_name = [Credentials(token.token_hash, ("one", name)) for name in ("new", "renamed")]
    for credentials in with_name:
        await admitted(access, credentials)
    # By its creation, and by a change of another one.
    await created(users, "new")
    other, _ = await created(users, "other")
    await users.set_certificate_names(other.user_id, ["renamed"])
    for credentials in with_name:
        with pytest.raises(CertificateAmbiguous):
            await admitted(access, credentials)


async def test_a_commit_whose_confirmation_was_lost_is_seen(users: Users, access: Access, store: Store) -> None:
    user, token = await created(users, "one")
    await admitted(access, token)

    async def rotate() -> None:
        await store.credentials.rotate(user.user_id, Token("new", user.create_time), None)
        raise StoreUnavailable("the connection was lost")

    with pytest.raises(StoreUnavailable):
        await access.change(rotate(), user.user_id)
    with pytest.raises(TokenInvalid):
        await admitted(access, token)


@pytest.mark.parametrize("use", ["set_labels", "create"])
async def test_a_change_whose_caller_is_gone_is_seen(users: Users, access: Access, context: Context, use: str) -> None:
    user, token = await created(users, "one")
    certificate = Credentials(token.token_hash, ("one", "new"))
    await admitted(access, certificate)
    if use == "create":
        change = asyncio.create_task(users.create("new", Role.CLIENT, None, ("new",)))
    else:
        change = asyncio.create_task(users.set_labels(user.user_id, {"site": "north"}))
    # It begins, and waits for the store.
    await asyncio.sleep(0)
    change.cancel()
    await context.tasks.drain()
    if use == "create":
        with pytest.raises(CertificateAmbiguous):
            await admitted(access, certificate)
    else:
        assert (await admitted(access, certificate)).labels == {"site": "north"}


async def test_a_call_ends_when_its_token_expires(users: Users, access: Access) -> None:
    _, token = await created(users, "one", lifetime=MOMENT)
    with pytest.raises(TokenExpired):
        await (await open_call(access, token)).task


async def test_a_call_ends_with_the_overlap(users: Users, access: Access, clock: ManualClock) -> None:
    user, token = await created(users, "one")
    before = await open_call(access, token)
    new = await users.rotate_token(user, user.user_id, MOMENT, None)
    with pytest.raises(TokenExpired):
        await before.task
    rotated = await open_call(access, Credentials(hash_token(new)))
    clock.advance(HOUR)
    with pytest.raises(TokenExpired):
        async with access.admit(token):
            pass
    assert await rotated.finish() == user


async def test_an_error_of_the_call_itself_is_passed_on(users: Users, access: Access) -> None:
    _, token = await created(users, "one")
    with pytest.raises(TimeoutError, match="its own"):
        async with access.admit(token):
            raise TimeoutError("its own")


async def test_the_time_of_last_use_of_tokens(users: Users, access: Access, clock: ManualClock) -> None:
    user, token = await created(users, "one")
    used = {}
    for _ in range(4):
        async with access.admit(token):
            used[token.token_hash] = clock.now()
        token = Credentials(hash_token(await users.rotate_token(user, user.user_id, HOUR, None)))
        clock.advance(MOMENT)
    new, before = (await users.view(user.user_id)).tokens
    assert access.last_use(user.user_id, new.token_hash) is None
    assert access.last_use(user.user_id, before.token_hash) == used[before.token_hash]


async def test_of_two_servers_that_begin_at_once_one_makes_the_first_admin(
    users: Users, store: Store, clock: ManualClock
) -> None:
    loop = asyncio.get_running_loop()
    first: list[str] = []
    second: list[str] = []

    def overtaken(token: str) -> None:
        second.append(token)
        asyncio.run_coroutine_threadsafe(users.bootstrap(first.append, first.clear), loop).result(10)

    assert not await users.bootstrap(overtaken, second.clear)
    assert (len(first), second) == (1, [])
    assert len((await store.credentials.admins(clock.now()))[0]) == 1


async def test_lifetimes(store: Store, clock: ManualClock) -> None:
    limits = Limits(token_lifetime=HOUR, max_token_lifetime=2 * HOUR)
    context = Context(store, NOTHING, NOTHING, Hub(), NOTHING, limits, clock=clock)
    access = Access(context)
    users = Users(context, access)
    kept: list[str] = []
    assert await users.bootstrap(kept.append, kept.clear)
    async with access.admit(Credentials(hash_token(kept[0]))) as admin:
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
