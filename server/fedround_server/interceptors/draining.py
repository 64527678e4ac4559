"""A server that leaves begins nothing long, finishes what is under way, and waits for nobody who only watches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fedround_server.domain.errors import ServerLeaving
from fedround_server.interceptors.limits import DOWNLOADS, UPLOADS
from fedround_server.interceptors.wrapping import Call, ContextInterceptor

ENDLESS = frozenset(
    {
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""Calls that end when their caller likes. Subscriptions are none of these: they say goodbye themselves."""
LONG = UPLOADS | DOWNLOADS | {"/fedround.v1.TrainingService/StartTraining", "/fedround.v1.InferenceService/Predict"}
"""Calls that a server which leaves does not begin: they would be cut, or open a round whose participants are gone."""
FAREWELL = 0.2
"""Seconds in which a watcher is told that the server does not serve any more."""


class DrainInterceptor(ContextInterceptor):
    """Knows which calls are under way, and ends the endless ones when the server leaves."""

    def __init__(self) -> None:
        """Begins with none."""
        self._scopes: set[asyncio.Timeout] = set()
        self._patience: float | None = None
        self._under_way = _UnderWay()

    def count(self) -> int:
        """Returns how many calls are under way; endless ones don't count."""
        return self._under_way.count

    def leave(self) -> None:
        """Ends the endless calls, those under way and those that come, and refuses long ones from now on."""
        self._patience = FAREWELL
        for scope in self._scopes:
            scope.reschedule(asyncio.get_running_loop().time() + FAREWELL)

    async def finish(self, grace: float) -> float:
        """Waits for the calls that are under way, and returns how many seconds of the grace are left."""
        clock = asyncio.get_running_loop().time
        end = clock() + grace
        try:
            async with asyncio.timeout_at(end):
                await self._under_way.idle.wait()
        except TimeoutError:
            return 0.0
        return end - clock()

    def around(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Ends an endless call with OK, wherever it waits; others are counted."""
        if method in ENDLESS:
            return self._watching()
        if self._patience is not None and method in LONG:
            raise ServerLeaving
        return self._under_way

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        scope = asyncio.timeout(self._patience)
        self._scopes.add(scope)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._scopes.discard(scope)


class _UnderWay:
    """Counts calls: one for all of them, as thousands of subscriptions last long."""

    def __init__(self) -> None:
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def __aenter__(self) -> None:
        self.count += 1
        self.idle.clear()

    async def __aexit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self.idle.set()
