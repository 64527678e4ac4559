"""The live state of a page when something goes wrong."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import fedround_client as fr
from dashboard.conftest import People
from fedround_client.dashboard.feed import Feeds, Live
from fedround_client.dashboard.sessions import Account, Sessions


@pytest.fixture
def account(people: People) -> Iterator[Account]:
    sessions = Sessions(
        lambda token: fr.connect(people.server.address, token),
        idle_seconds=60,
        session_seconds=60,
        clock=lambda: 0.0,
    )
    found = sessions.find(sessions.sign_in(people.viewer.token))
    assert found is not None
    yield found.account
    sessions.end_all()


async def first(feeds: Feeds, account: Account, render: Any, count: int) -> list[bytes]:
    """The first messages of a stream."""
    stream = feeds.stream(account, "", render, lambda: True)
    async with contextlib.aclosing(stream):
        messages = []
        async for message in stream:
            if message.startswith(b"event"):
                messages.append(message)
            if len(messages) == count:
                break
    return messages


@pytest.fixture
def feeds(people: People) -> Feeds:
    return Feeds(lambda token: fr.connect(people.server.address, token))


async def test_an_error_of_the_server_is_shown_and_passes(
    feeds: Feeds, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedround_client.dashboard.feed.MOST_SECONDS", 0.1)
    answers: Iterator[Any] = iter([Live(says="one"), account.client._rpc.unavailable("is gone"), Live(says="two")])

    def render(_: int) -> Live:
        answer = next(answers, Live(says="end"))
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Live)
        return answer

    one, error, two = await first(feeds, account, render, 3)
    assert b'"says": "one", "problem": ""' in one
    assert b'"says": "one", "problem": "The server at' in error
    assert b'"says": "two", "problem": ""' in two


async def test_a_defect_ends_the_streams_so_that_pages_connect_anew(
    feeds: Feeds, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    def render(_: int) -> Live:
        raise ZeroDivisionError

    async with asyncio.timeout(30):
        assert await first(feeds, account, render, 2) == []
    assert "The live part of a page failed." in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert feeds.num_feeds == 0
