"""A start line for calls of a coordinator."""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from contracts.coordination import Coordination
from fedround_server.domain.errors import FedroundError
from fedround_server.domain.event import Event
from fedround_server.domain.training import Training
from sizes import SEED


class Barrier:
    """Makes the next transactions wait for each other between their begin and their first statement."""

    def __init__(self) -> None:
        self._gate: threading.Barrier | None = None
        self._left = 0
        self._lock = threading.Lock()

    def arm(self, parties: int) -> None:
        self._gate, self._left = threading.Barrier(parties), parties

    def wait(self) -> None:
        with self._lock:
            gate = self._gate if self._left else None
            self._left = max(0, self._left - 1)
        if gate is not None:
            gate.wait(100)


class Race:
    """A coordinator, and a start line."""

    def __init__(self, coordination: Coordination, barrier: Barrier | None) -> None:
        self.coordination = coordination
        self.store = coordination.context.store
        self._barrier = barrier
        self._random = random.Random(SEED)

    async def run(self, *runners: Awaitable[Any]) -> list[Any]:
        """Lets them go at once, in any order; returns what each of them came to."""
        order = list(range(len(runners)))
        self._random.shuffle(order)
        if self._barrier is not None:
            self._barrier.arm(len(runners))
        found = await asyncio.gather(*(runners[number] for number in order), return_exceptions=True)
        outcomes = dict(zip(order, found, strict=True))
        for outcome in found:
            if isinstance(outcome, BaseException) and not isinstance(outcome, FedroundError):
                raise outcome
        return [outcomes[number] for number in range(len(runners))]

    async def log(self, training_id: str, actor: str) -> list[Event]:
        """The training's events; without gaps, and agreeing with its row."""
        page = await self.store.events.poll(training_id, actor, 0, 1000)
        assert [event.sequence for event in page.events] == list(range(1, page.view.last_sequence + 1))
        return list(page.events)

    async def until(self, actor: str, training: Training, holds: Callable[[Training], bool]) -> Training:
        return await self.coordination.until(actor, training.training_id, holds)
