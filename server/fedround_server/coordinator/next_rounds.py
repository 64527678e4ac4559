"""Has calls wait for the next round of a training with buffering."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fedround_server.domain.errors import ServerLeaving
from fedround_server.store.queries.buffered import NextRoundAwaited
from fedround_server.wakeups import Hub, Waiter

R = TypeVar("R")
POLL_SECONDS = 5.0
"""How long a call waits at most for a wake-up before it tries again: one is lost if the database fails at a commit."""
BEHIND_SECONDS = 60.0
"""The same of a call that others are before."""


class NextRounds:
    """Repeats calls until a round is open. Nothing that a round needs to open waits for them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._stopped = False
        # By training: what happens to it wakes only the first of those that wait, or each round would cost as many
        # tries as there are participants.
        self._queues: dict[str, list[Waiter]] = {}

    def stop(self) -> None:
        """Ends the waits: no round opens any more before the next start."""
        self._stopped = True
        self._hub.notify_all()

    async def when_open(self, training_id: str, user_id: str, call: Callable[[], Awaitable[R]]) -> R:
        """Returns what a user's call returns, once it does not await the next round of a training.

        What happens to the user ends the wait, wherever it is in the queue: its removal must not wait for a round.

        Raises:
            ServerLeaving: The server stops before.
            FedroundError: As the call.
        """
        try:
            return await call()
        except NextRoundAwaited:
            queue = self._queues.setdefault(training_id, [])
        with self._hub.waiter() as waiter:
            waiter.follow([user_id])
            queue.append(waiter)
            try:
                while True:
                    is_first = queue[0] is waiter
                    if is_first:
                        waiter.follow([training_id])
                    try:
                        return await call()
                    except NextRoundAwaited:
                        if self._stopped:
                            raise ServerLeaving from None
                    await waiter.wait(POLL_SECONDS if is_first else BEHIND_SECONDS)
            finally:
                queue.remove(waiter)
                if queue:
                    queue[0].wake(training_id)
                else:
                    del self._queues[training_id]
