"""What is kept of whom credentials belong to, and until when."""

import asyncio
from datetime import UTC, datetime

import pytest

from fedround_server.coordinator import identities
from fedround_server.coordinator.identities import KEPT_SECONDS, Identities
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.user import Role, User

NOBODY = Identity()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def owned_by(name: str) -> Identity:
    return Identity(owner=User(name, name, Role.CLIENT, NOW))


class Database:
    """Answers who owns each token; counts the questions, and may keep one waiting."""

    def __init__(self) -> None:
        self.owners: dict[str | None, Identity] = {}
        self.asked = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def look_up(self, credentials: Credentials) -> Identity:
        self.asked += 1
        found = self.owners.get(credentials.token_hash, NOBODY)
        await self.go_on.wait()
        return found


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def kept(database: Database, now: list[float]) -> Identities:
    return Identities(database.look_up, lambda: now[0])


async def test_the_database_is_asked_once(database: Database, kept: Identities) -> None:
    database.owners["a"] = owned_by("one")
    for _ in range(3):
        assert await kept.find(Credentials("a")) == owned_by("one")
    assert database.asked == 1
    # Another certificate is another credential.
    await kept.find(Credentials("a", ("host",)))
    assert database.asked == 2


async def test_credentials_of_no_user_are_not_kept(database: Database, kept: Identities) -> None:
    assert await kept.find(Credentials("a")) == NOBODY
    database.owners["a"] = owned_by("one")
    assert await kept.find(Credentials("a")) == owned_by("one")


async def test_a_change_is_seen_by_the_next_call(database: Database, kept: Identities) -> None:
    database.owners["a"] = owned_by("one")
    await kept.find(Credentials("a"))
    del database.owners["a"]
    kept.forget_all()
    assert await kept.find(Credentials("a")) == NOBODY


async def test_what_was_read_before_a_change_is_neither_returned_nor_kept(database: Database, kept: Identities) -> None:
    database.owners["a"] = owned_by("one")
    database.go_on.clear()
    call = asyncio.create_task(kept.find(Credentials("a")))
    while not database.asked:
        await asyncio.sleep(0)
    del database.owners["a"]
    kept.forget_all()
    database.go_on.set()
    assert await call == NOBODY
    assert await kept.find(Credentials("a")) == NOBODY


async def test_what_is_kept_ends_after_a_time(database: Database, kept: Identities, now: list[float]) -> None:
    database.owners["a"] = owned_by("one")
    for now[0], asked in ((0.0, 1), (KEPT_SECONDS - 1, 1), (KEPT_SECONDS, 2), (2 * KEPT_SECONDS - 1, 2)):
        await kept.find(Credentials("a"))
        assert database.asked == asked


async def test_a_number_of_them_is_kept(database: Database, kept: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "MAX_KEPT", 2)
    database.owners |= {name: owned_by(name) for name in "abc"}
    for name in "abccb":
        await kept.find(Credentials(name))
    assert database.asked == 3
    await kept.find(Credentials("a"))
    assert database.asked == 4
