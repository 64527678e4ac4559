"""Draining: the server starts nothing long, finishes the calls in progress, and ends those without an end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fedround_server.counters import Counters
from fedround_server.domain.errors import ServerLeaving
from fedround_server.interceptors.wrapping import Call, ContextInterceptor
from fedround_server.methods import METHODS, OnDrain

END_DELAY = 0.2
"""Seconds between the start of draining and the end of endless calls: health watchers see NOT_SERVING before that."""


class DrainInterceptor(ContextInterceptor):
    """Counts the calls in progress, and applies each method's `on_drain` once the server drains."""

    def __init__(self, counters: Counters) -> None:
        self._endless: set[asyncio.Timeout] = set()
        # The timeout of endless calls, in seconds; None until the server drains.
        self._end_delay: float | None = None
        self._in_progress = _CallCounter(counters)

    def count(self) -> int:
        """Returns the number of calls in progress, without endless ones."""
        return self._in_progress.counters.calls_in_progress

    def start_draining(self) -> None:
        """Ends endless calls, those in progress and later ones, and rejects long calls from now on."""
        self._end_delay = END_DELAY
        for timeout in self._endless:
            timeout.reschedule(asyncio.get_running_loop().time() + END_DELAY)

    async def wait_until_idle(self, grace: float) -> float:
        """Waits for the calls in progress, for so many seconds at most; returns how many are left."""
        clock = asyncio.get_running_loop().time
        end = clock() + grace
        try:
            async with asyncio.timeout_at(end):
                await self._in_progress.idle.wait()
        except TimeoutError:
            return 0.0
        return end - clock()

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Counts a call; an endless one is not counted, and ends with OK when the server drains."""
        on_drain = METHODS[method].on_drain
        if on_drain is OnDrain.END:
            return self._end_on_drain()
        if self._end_delay is not None and on_drain is OnDrain.REJECT:
            raise ServerLeaving
        return self._in_progress

    @asynccontextmanager
    async def _end_on_drain(self) -> AsyncIterator[None]:
        timeout = asyncio.timeout(self._end_delay)
        self._endless.add(timeout)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
        finally:
            self._endless.discard(timeout)


class _CallCounter:
    """Counts calls. One object for all of them: thousands of subscriptions are in progress at the same time."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.idle = asyncio.Event()
        self.idle.set()

    async def __aenter__(self) -> None:
        self.counters.calls_in_progress += 1
        self.idle.clear()

    async def __aexit__(self, *_: object) -> None:
        self.counters.calls_in_progress -= 1
        if not self.counters.calls_in_progress:
            self.idle.set()
