"""Timers of the deadlines of open rounds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fedround_server.coordinator.aggregation import RETRY_DELAY
from fedround_server.coordinator.context import Context
from fedround_server.domain.audit import acting
from fedround_server.domain.errors import Unavailable
from fedround_server.domain.rounds.round import Round, UnfinishedRound
from fedround_server.failpoints import reached

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Timer:
    """The timer of one attempt at a round."""

    number: int
    attempt: int
    task: asyncio.Task[None]


class Deadlines:
    """The timers of open rounds, at most one per training."""

    def __init__(
        self,
        context: Context,
        expire: Callable[[str, int, int], Coroutine[Any, Any, None]],
        follow_up: Callable[[str], Awaitable[None]],
    ) -> None:
        """Creates it without any timer.

        Args:
            context: The parts of the server.
            expire: Called with a training's id, a round's number and its attempt once that round's deadline has passed,
                again after each `Unavailable`.
            follow_up: Called with the training's id after that; it may arm the next timer.
        """
        self._context = context
        self._expire = expire
        self._follow_up = follow_up
        self._timers: dict[str, _Timer] = {}
        self._stopped = False

    def stop(self) -> None:
        """Leaves deadlines to the next start: a round opened from now on would miss its participants."""
        self._stopped = True

    def arm(self, current: Round | UnfinishedRound, deadline: datetime) -> bool:
        """Arms the timer of an open round, in place of an earlier one; returns whether this attempt had none."""
        training_id, number, attempt = current.training_id, current.number, current.attempt
        armed = self._timers.get(training_id)
        # The caller may have read the round before the latest one was opened, or repeated.
        if armed is not None and (armed.number, armed.attempt) >= (number, attempt):
            return False
        self.disarm(training_id)
        left = deadline - self._context.clock.now()
        waiting = self._wait(training_id, number, attempt, left)
        task = self._context.background.create_task(waiting, name=f"deadline {training_id}")
        self._timers[training_id] = _Timer(number, attempt, task)
        return True

    def disarm(self, training_id: str) -> None:
        """Cancels the timer of a training, if there is one."""
        timer = self._timers.pop(training_id, None)
        if timer is not None:
            timer.task.cancel()

    async def _wait(self, training_id: str, number: int, attempt: int, left: timedelta) -> None:
        acting.set("")
        await self._context.clock.sleep(left)
        reached("deadline.fired")
        while True:
            if self._stopped:
                return
            try:
                await self._context.tasks.run_shielded(self._expire(training_id, number, attempt))
            except Unavailable as error:
                log.warning("deadline of training %s: %s", training_id, error)
                await self._context.clock.sleep(RETRY_DELAY)
            else:
                reached("deadline.judged")
                break
        timer = self._timers.get(training_id)
        if timer is not None and (timer.number, timer.attempt) == (number, attempt):
            # Before following up: arming the next timer would otherwise cancel this task.
            del self._timers[training_id]
            await self._follow_up(training_id)
