"""Has calls wait for the next round of a training with buffering."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from fedround_server.domain.errors import ServerLeaving
from fedround_server.store.queries.buffered import NextRoundAwaited
from fedround_server.wakeups import Hub

R = TypeVar("R")
POLL_SECONDS = 5.0
"""How long a call waits at most for a wake-up before it tries again: one is lost if the database fails at a commit."""


class NextRounds:
    """Repeats calls until a round is open. Nothing that a round needs to open waits for them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._stopped = False
        # By training: only the first of those that wait tries again, or each round would cost as many tries as there
        # are participants.
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def stop(self) -> None:
        """Ends the waits: no round opens any more before the next start."""
        self._stopped = True
        self._hub.notify_all()

    async def when_open(self, training_id: str, call: Callable[[], Awaitable[R]]) -> R:
        """Returns what a call returns, once it does not await the next round of a training.

        Raises:
            ServerLeaving: The server stops before.
            FedroundError: As the call.
        """
        try:
            return await call()
        except NextRoundAwaited:
            queue = self._queues.setdefault(training_id, asyncio.Lock())
        async with queue:
            with self._hub.waiter() as waiter:
                waiter.follow([training_id])
                while True:
                    try:
                        return await call()
                    except NextRoundAwaited:
                        if self._stopped:
                            raise ServerLeaving from None
                    await waiter.wait(POLL_SECONDS)
