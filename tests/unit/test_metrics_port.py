"""The port for Prometheus: what a scrape gets when the server does not answer, and when it ends."""

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable

import pytest

from fedround_server import metrics_port as module
from fedround_server.coordinator.server_status import ServerStatus
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.metrics_port import metrics_port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def status_code(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def hang() -> ServerStatus:
    await asyncio.Event().wait()
    raise AssertionError


async def fail() -> ServerStatus:
    raise StoreUnavailable


@pytest.mark.parametrize("read", [hang, fail])
async def test_a_server_that_does_not_answer_is_down(
    read: Callable[[], Awaitable[ServerStatus]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_SECONDS", 0.1)
    port = free_port()
    async with metrics_port(("127.0.0.1", port), read):
        assert await asyncio.to_thread(status_code, port) == 503
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_without_an_address_nothing_is_served() -> None:
    async with metrics_port(None, hang):
        pass
