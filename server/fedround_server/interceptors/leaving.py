"""Lets go of calls that only watch, so that a server that leaves waits for work and for nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fedround_server.interceptors.around import AroundInterceptor, Call

ENDLESS = frozenset(
    {
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""Calls that end when their caller likes. Subscriptions are none of these: they say goodbye themselves."""
FAREWELL = 0.2
"""Seconds in which a watcher is told that the server does not serve any more."""


class LeaveInterceptor(AroundInterceptor):
    """Ends endless calls when the server leaves."""

    def __init__(self) -> None:
        """Begins with none."""
        self._scopes: set[asyncio.Timeout] = set()
        self._patience: float | None = None

    def leave(self) -> None:
        """Ends the endless calls, those under way and those that come."""
        self._patience = FAREWELL
        for scope in self._scopes:
            scope.reschedule(asyncio.get_running_loop().time() + FAREWELL)

    @asynccontextmanager
    async def around(self, method: str, context: Call) -> AsyncIterator[None]:
        """Ends a call with OK, wherever it waits."""
        if method not in ENDLESS:
            yield
            return
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
