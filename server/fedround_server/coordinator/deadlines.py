"""Timers of open rounds: of their deadlines, and of the ends of their waits for members that are under way."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fedround_server.coordinator.aggregation import RETRY_DELAY
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.log_context import begin_work
from fedround_server.coordinator.outages import level_of
from fedround_server.domain.audit import acting
from fedround_server.domain.errors import Unavailable
from fedround_server.domain.rounds.round import Round, UnfinishedRound
from fedround_server.failpoints import reached

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Timer:
    """The timer of one attempt at a round, and of its wait if it has enough updates."""

    number: int
    attempt: int
    waits: bool
    task: asyncio.Task[None]


class Deadlines:
    """The timers of open rounds, at most one per training."""

    def __init__(
        self,
        context: Context,
        expire: Callable[[Round | UnfinishedRound, datetime], Coroutine[Any, Any, None]],
        follow_up: Callable[[str], Awaitable[None]],
    ) -> None:
        """Creates it without any timer.

        Args:
            context: The parts of the server.
            expire: Called with a round as it was armed, and with the time that has come; again after `Unavailable`.
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

    def arm(self, current: Round | UnfinishedRound) -> bool:
        """Arms the timer of an open round, in place of an earlier one, if it has a deadline or waits.

        Returns:
            Whether this attempt, or its wait, had no timer.
        """
        times = [time for time in (current.deadline, current.wait_end) if time is not None]
        if not times:
            return False
        training_id, number, attempt = current.training_id, current.number, current.attempt
        waits = current.wait_end is not None
        armed = self._timers.get(training_id)
        # The caller may have read the round before the latest one was opened, or repeated, or before it waited.
        if armed is not None and (armed.number, armed.attempt, armed.waits) >= (number, attempt, waits):
            return False
        self.disarm(training_id)
        task = self._context.background.create_task(self._wait(current, min(times)), name=f"deadline {training_id}")
        self._timers[training_id] = _Timer(number, attempt, waits, task)
        return True

    def disarm(self, training_id: str) -> None:
        """Cancels the timer of a training, if there is one."""
        timer = self._timers.pop(training_id, None)
        if timer is not None:
            timer.task.cancel()

    async def _wait(self, current: Round | UnfinishedRound, time: datetime) -> None:
        acting.set("")
        training_id = current.training_id
        begin_work(training_id, round=current.number)
        await self._context.clock.sleep(time - self._context.clock.now())
        reached("deadline.fired")
        while True:
            if self._stopped:
                return
            try:
                await self._context.tasks.run_shielded(self._expire(current, time))
            except Unavailable as error:
                log.log(level_of(error), "deadline of training %s: %s", training_id, error)
                await self._context.clock.sleep(RETRY_DELAY)
            else:
                reached("deadline.judged")
                break
        timer = self._timers.get(training_id)
        if timer is not None and timer.task is asyncio.current_task():
            # Before following up: arming the next timer would otherwise cancel this task.
            del self._timers[training_id]
            await self._follow_up(training_id)
