"""Drives rounds: makes sure that each one that waits for an aggregation or for a deadline gets it."""

import logging
from functools import partial

from fedround_server.coordinator.aggregation import Aggregations
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.deadlines import Deadlines
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.coordinator.uploads.receive import Uploads
from fedround_server.domain.errors import Unavailable
from fedround_server.domain.rounds.round import Round, RoundState, UnfinishedRound
from fedround_server.failpoints import reached

log = logging.getLogger(__name__)


class Rounds:
    """The rounds of running trainings: their aggregations and their deadlines."""

    def __init__(self, context: Context, uploads: Uploads, files: StoredFiles) -> None:
        """Creates it with nothing under way; `recover` finds the rounds of an earlier process."""
        self._context = context
        self._store = context.store.rounds
        self._uploads = uploads
        self._deadlines = Deadlines(context, partial(self._judge, due=True), self.follow_up)
        self.aggregations = Aggregations(context, files, self.follow_up)

    def stop(self) -> None:
        """Leaves closed rounds and deadlines to the next start."""
        self.aggregations.stop()
        self._deadlines.stop()

    async def recover(self) -> None:
        """Takes up the rounds of an earlier process; to be called before serving."""
        for left in await self._store.unfinished():
            if left.state is RoundState.OPEN:
                due = left.deadline is not None and self._context.clock.now() >= left.deadline
                await self._judge(left.training_id, left.number, left.attempt, due=due)
                reached("start.judged")
        await self.reconcile()

    async def reconcile(self) -> None:
        """Takes up every round that waits for something which is not under way, and touches no other.

        Such a round is left behind when the database fails during a commit, or between a commit and what follows it.
        """
        for left in await self._store.unfinished():
            if self._take_up(left):
                self._context.hub.notify(left.training_id)

    async def follow_up(self, training_id: str) -> None:
        """Starts what the training's current round waits for, after a commit that may have closed or opened one."""
        try:
            current = await self._store.current(training_id)
        except Unavailable as error:
            # The commit stands, and the caller need not know of this: `reconcile` does the same soon.
            log.warning("what follows in training %s: %s", training_id, error)
            return
        if current is None or current.state.is_over:
            self.forget(training_id)
        else:
            self._take_up(current)

    def forget(self, training_id: str) -> None:
        """Disarms a training's deadline, and forgets the progress of its uploads."""
        self._deadlines.disarm(training_id)
        self._uploads.progress.forget(training_id)

    def _take_up(self, current: Round | UnfinishedRound) -> bool:
        """Starts what a round waits for; returns whether that was not under way."""
        if current.state is RoundState.AGGREGATING:
            return self.aggregations.start(current.training_id)
        return current.deadline is not None and self._deadlines.arm(current, current.deadline)

    async def _judge(self, training_id: str, number: int, attempt: int, *, due: bool) -> None:
        now = self._context.clock.now()
        if await self._store.judge(training_id, number, due=due, now=now, attempt=attempt):
            self.aggregations.start(training_id)
        self._context.hub.notify(training_id)
