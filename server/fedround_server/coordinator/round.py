"""Drives rounds: makes sure that each one that waits for an aggregation or for a deadline gets it."""

import logging
from collections.abc import Awaitable, Mapping
from datetime import datetime

import structlog

from fedround_server.coordinator.absences import Absences
from fedround_server.coordinator.aggregation import Aggregations
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.deadlines import Deadlines
from fedround_server.coordinator.next_rounds import NextRounds
from fedround_server.coordinator.openings import Openings
from fedround_server.coordinator.outages import level_of
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.coordinator.uploads.receive import Uploads
from fedround_server.coordinator.waiting_log import WaitingLog
from fedround_server.domain.errors import Unavailable
from fedround_server.domain.failure import ABSENT, printable
from fedround_server.domain.rounds.round import Round, RoundState, UnfinishedRound
from fedround_server.domain.token import redact
from fedround_server.failpoints import reached
from fedround_server.wakeups import for_actor

log = logging.getLogger(__name__)
log_rounds = structlog.get_logger("fedround.training")


class Rounds:
    """The rounds of running trainings: their aggregations and their deadlines."""

    def __init__(self, context: Context, uploads: Uploads, files: StoredFiles) -> None:
        """Creates it with nothing under way; `recover` finds the rounds of an earlier process."""
        self._context = context
        self._store = context.store.rounds
        self._uploads = uploads
        self._deadlines = Deadlines(context, self._expire, self.follow_up)
        self.openings = Openings(context, self.follow_up)
        self.next_rounds = NextRounds(context.hub)
        self._waiting = WaitingLog(context)
        self.absences = Absences(context, self._exclude)
        self.aggregations = Aggregations(context, files, self.follow_up)

    def stop(self) -> None:
        """Leaves pending and closed rounds, deadlines and absences to the next start."""
        self.absences.stop()
        self.openings.stop()
        self.aggregations.stop()
        self._deadlines.stop()
        self.next_rounds.stop()

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
        watched = {*self.absences.watched(), *self.openings.watched()}
        unfinished = await self._store.unfinished()
        for left in unfinished:
            is_new = await self._is_here(left) and self._take_up(left)
            # Another replica has told of those that it has opened.
            if is_new and not self._context.peers.others:
                self._context.hub.notify(left.training_id)
        # Those that other replicas have ended.
        for training_id in watched - {left.training_id for left in unfinished}:
            self.forget(training_id)
        if self._context.peers.is_first:
            await self._waiting.look(unfinished)

    async def follow_up(self, training_id: str) -> None:
        """Starts what the training's current round waits for, after a commit that may have closed or opened one."""
        try:
            current = await self._store.current(training_id)
            if current is not None and current.state is RoundState.PENDING:
                self.openings.watch(current)
                await self.openings.look(training_id)
                return
        except Unavailable as error:
            # The commit stands, and the caller need not know of this: `reconcile` does the same soon.
            log.log(level_of(error), "what follows in training %s: %s", training_id, error)
            return
        if current is None or current.state.is_over:
            self.forget(training_id)
        else:
            self._take_up(current)

    async def report_failure(self, training_id: str, number: int, user_id: str, reason: str, message: str) -> None:
        """Records that a participant cannot deliver in a round, which may close the round or end the training.

        Raises:
            FedroundError: It is rejected, as described for `SubmissionVerbs.report_failure`.
        """
        # The actor must not see a token.
        stored = printable(redact(message))
        await self._context.tasks.run_shielded(self._report_failure(training_id, number, user_id, reason, stored))

    def forget(self, training_id: str) -> None:
        """Disarms a training's deadline, and forgets its absent participants and the progress of its uploads."""
        self._deadlines.disarm(training_id)
        self.absences.forget(training_id)
        self.openings.forget(training_id)
        self._uploads.progress.forget(training_id)

    def _take_up(self, current: Round | UnfinishedRound) -> bool:
        """Starts what a round waits for; returns whether that was not under way."""
        if current.state is RoundState.AGGREGATING:
            return self.aggregations.start(current.training_id)
        if current.state is RoundState.PENDING:
            self.openings.watch(current)
            return False
        self.openings.forget(current.training_id)
        is_new = self.absences.watch(current)
        return self._deadlines.arm(current) or is_new

    async def _is_here(self, left: UnfinishedRound) -> bool:
        """Returns whether this server does what a round waits for: all but the aggregation any replica may do."""
        replica_id = self._context.store.replica_id
        if left.state is not RoundState.AGGREGATING or left.keeper == replica_id:
            return True
        if self.aggregations.is_stopped or self._context.peers.is_alive(left.keeper, self._context.clock.now()):
            return False
        taken = await self._context.store.replicas.take_over(left.training_id, left.number)
        if taken:
            log_rounds.warning("round_taken_over", training_id=left.training_id, round=left.number, keeper=left.keeper)
        return taken

    async def _expire(self, current: Round | UnfinishedRound, time: datetime) -> None:
        """Judges a round for which a time has come, by a clock that is never set."""
        due = current.deadline is not None and time >= current.deadline
        await self._judge(current.training_id, current.number, current.attempt, due=due, waited_until=time)

    async def _judge(
        self, training_id: str, number: int, attempt: int, *, due: bool, waited_until: datetime | None = None
    ) -> None:
        if due:
            log_rounds.info("deadline_passed", training_id=training_id, round=number, attempt=attempt)
        now = self._context.clock.now()
        connected = self._context.presence.listeners(now)
        if await self._store.judge(
            training_id, number, due=due, now=now, attempt=attempt, waited_until=waited_until, connected=connected
        ):
            self.aggregations.start(training_id)
        self._context.hub.notify(training_id)

    async def _report_failure(self, training_id: str, number: int, user_id: str, reason: str, message: str) -> None:
        def report() -> Awaitable[bool]:
            now = self._context.clock.now()
            return self._context.store.submissions.report_failure(training_id, number, user_id, reason, message, now)

        closed = await self.next_rounds.when_open(training_id, user_id, report)
        self._context.counters.add_failures(reason)
        await self._go_on(training_id, closed=closed)

    async def _exclude(self, training_id: str, number: int, absent: Mapping[str, str]) -> None:
        """Records that members of an open round are absent."""
        closed = await self._store.exclude_absent(training_id, number, absent, self._context.clock.now())
        self._context.counters.add_failures(ABSENT, len(absent))
        await self._go_on(training_id, closed=closed)

    async def _go_on(self, training_id: str, *, closed: bool) -> None:
        """Starts what follows when a round no longer waits for some of its members."""
        # It may have ended the training, which concerns everybody.
        self._context.hub.notify(training_id, for_actor(training_id))
        if closed:
            self.aggregations.start(training_id)
        else:
            await self.follow_up(training_id)
