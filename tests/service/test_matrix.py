"""Every RPC, by every kind of caller, token and object: no caller gets or learns more than the tables say.

The methods come from the descriptors; the tables of methods.py and rules.py say what is to be answered.
"""

import asyncio
import itertools
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from fedround.v1 import user_pb2, user_pb2_grpc
from fedround_server import app
from fedround_server.config import Settings
from fedround_server.domain.user import Role
from fedround_server.methods import METHODS
from service.matrix import OBJECTS, RPCS, STATES, Answer, Caller, Site, expected
from service.rules import RULES
from sizes import IS_LONG

AT_ONCE = 16
LOOKS = 5


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A server in this process, so that its statements can be seen."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(listen="127.0.0.1:0", data_dir=tmp_path / "data", max_token_lifetime_seconds=90_000)
    async with app.serve(settings) as address, grpc.aio.insecure_channel(address) as channel:
        token = (tmp_path / "data" / "admin.token").read_text().strip()
        users = user_pb2_grpc.UserServiceStub(channel)
        me = await users.GetMyself(user_pb2.GetMyselfRequest(), metadata=[("x-token", token)])
        site = Site(channel, Caller(Role.ADMIN, token=token, own={"user": me.user.user_id}))
        site.foreign |= (await site.make(Role.ACTOR)).own
        yield site


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collects the text of all statements that the store executes."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.msg, tuple):
                found.append(record.msg[0])

    logger, handler = logging.getLogger("peewee"), Collector()
    level = logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(level)


async def all_callers(site: Site) -> list[Caller]:
    """An unauthenticated caller, a user for each role and state of its token, and removed actors likewise.

    A short run has all of them with a valid token, and each other state of a token once.
    """
    kinds = [*((role, False) for role in Role), (Role.ACTOR, True)]
    made = [
        await site.make(role, state, removed=removed)
        for number, state in enumerate(STATES)
        for position, (role, removed) in enumerate(kinds)
        if IS_LONG or state == "valid" or position == number % len(kinds)
    ]
    return [Caller(own=site.foreign), *made]


def test_there_is_a_rule_for_every_rpc() -> None:
    assert RULES.keys() == RPCS.keys() == METHODS.keys()


@pytest.mark.attack
@pytest.mark.timeout(300)
async def test_the_whole_matrix(site: Site, record_property: Callable[[str, object], None]) -> None:
    cells = list(itertools.product(RPCS, await all_callers(site), OBJECTS))
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(method: str, caller: Caller, object_: str) -> Answer:
        async with room:
            return await site.ask(method, caller, object_)

    answers = dict(zip(map(key, cells), await asyncio.gather(*(ask(*cell) for cell in cells)), strict=True))
    leaks = [
        f"{method} about {object_} by {caller}: {answers[key(cell)].reason}, not {expected(*cell)}"
        for cell in cells
        for method, caller, object_ in [cell]
        if answers[key(cell)].reason != expected(*cell)
    ]
    assert leaks == []
    # What must be indistinguishable differs in nothing.
    pairs = 0
    for method, caller, object_ in cells:
        foreign, missing = (method, caller, "foreign"), (method, caller, "missing")
        if object_ == "foreign" and expected(*foreign) == expected(*missing):
            assert answers[key(foreign)] == answers[key(missing)], f"{method} by {caller}"
            pairs += 1
    size = f"{len(RPCS)} RPCs, {len(cells)} calls, {pairs} pairs of foreign and missing: {len(leaks)} leaks"
    record_property("size", size)
    sys.stdout.write(f"{size} {Counter(answer.reason for answer in answers.values())}\n")


def key(cell: tuple[str, Caller, str]) -> tuple[str, int, str]:
    method, caller, object_ = cell
    return method, id(caller), object_


async def test_foreign_and_missing_cost_the_same_statements(site: Site) -> None:
    compared, different = 0, []
    for role in Role:
        with statements() as found:
            caller = await site.make(role)
        assert found
        for method, rule in RULES.items():
            if rule.kind and expected(method, caller, "foreign") == expected(method, caller, "missing"):
                compared += 1
                different += await differences(site, method, caller)
    assert different == []
    assert compared > 40


async def differences(site: Site, method: str, caller: Caller) -> list[str]:
    """Compares again if they differ: statements of background tasks may come in between."""
    for _ in range(LOOKS):
        seen = []
        for object_ in ("foreign", "missing"):
            with statements() as found:
                await site.ask(method, caller, object_)
            seen.append(list(found))
        if seen[0] == seen[1]:
            return []
    return [f"{method} by {caller}: {seen[0]}, {seen[1]}"]
