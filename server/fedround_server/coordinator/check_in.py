"""Check-ins: what is new for participants that hold no subscription open, and when they are to ask again."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.feed import BATCH
from fedround_server.coordinator.subscription import check_history
from fedround_server.domain import pace
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.event import Event


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """The answer to a check-in, besides its events.

    Attributes:
        resume_after: Where the next check-in begins: a sequence for each training that has not ended.
        retry_after: When to check in again; 0 if there are more events.
        ended: Whether no event can follow in the training that was asked about.
    """

    resume_after: Mapping[str, int]
    retry_after: timedelta
    ended: bool


class Full(Exception):
    """No further event fits into the response."""


Add = Callable[[Event], None]


class CheckIns:
    """Answers check-ins, and spreads them over time."""

    def __init__(self, context: Context, draw: Callable[[], float] = random.random) -> None:
        """Creates it.

        Args:
            context: The parts of the server.
            draw: Returns a random number from 0 to 1.
        """
        self._context = context
        self._draw = draw
        self._returning = pace.ReturningDevices(time.monotonic())

    async def check_in(
        self,
        user_id: str,
        training_id: str | None,
        resume_after: Mapping[str, int],
        add: Add,
        session_id: str | None,
        attributes: Mapping[str, str],
        last_retry_after: timedelta | None,
    ) -> CheckedIn:
        """Adds the events of a training, or of all trainings of the user, that are new.

        Args:
            user_id: The participant.
            training_id: The training; None for all of the user's.
            resume_after: The last sequence that the participant has seen, by training.
            add: Adds an event to the response, or raises Full.
            session_id: The program; None if it does not say.
            attributes: What the participant says of itself.
            last_retry_after: What it was told last, by this server or another one; None if it has not checked in yet.

        Raises:
            AlreadyParticipating: Another program takes part as this user, by a subscription.
            TrainingNotFound: The user never took part in a training.
            CursorExpired: A log ends before its cursor.
            FieldInvalid: There is a cursor of another training than the one that is asked about.
        """
        if training_id is not None and (foreign := sorted(resume_after.keys() - {training_id})):
            raise FieldInvalid("resume_after_sequence", f"{foreign[0]} is not the training that you ask about")
        presence = self._context.presence
        self._context.sessions.check(user_id, session_id, training_id, presence.elsewhere.sessions(user_id))
        presence.describe(user_id, attributes)
        reading = _Reading(self._context, user_id, dict(resume_after), add)
        try:
            await (reading.read_all() if training_id is None else reading.read(training_id))
        except Full:
            return CheckedIn(reading.cursors, timedelta(0), ended=False)
        is_idle = not reading.cursors
        retry_after = self._pace(user_id, last_retry_after, is_idle=is_idle)
        return CheckedIn(reading.cursors, retry_after, ended=training_id is not None and is_idle)

    def _pace(self, user_id: str, told: timedelta | None, *, is_idle: bool) -> timedelta:
        """Returns when a participant is to check in again; it counts as listening until then."""
        presence, limits, now = self._context.presence, self._context.limits, time.monotonic()
        if told is not None and not presence.has_checked_in(user_id):
            self._returning.add(told, now)
        devices = max(presence.num_expected() + (not presence.has_checked_in(user_id)), self._returning.estimate(now))
        mean = pace.mean_wait(devices, limits.max_check_ins_per_second, limits.check_in, is_idle=is_idle)
        retry_after = pace.wait(mean, self._draw())
        presence.expect(user_id, self._context.clock.now() + pace.latest_return(retry_after))
        return retry_after


class _Reading:
    """Reads logs after cursors, which follow the events that were added."""

    def __init__(self, context: Context, user_id: str, cursors: dict[str, int], add: Add) -> None:
        self.cursors = cursors
        self._store = context.store.events
        self._admissions = context.admissions
        self._user_id = user_id
        self._add = add

    async def read_all(self) -> None:
        """Reads the logs of all trainings of the user that run, and of those that have a cursor."""
        found = {view.training_id: view for view in await self._store.open_views(self._user_id)}
        for training_id in sorted(found.keys() | self.cursors):
            view = found.get(training_id)
            if view is None or self.cursors.get(training_id) != view.last_sequence:
                await self.read(training_id)

    async def read(self, training_id: str) -> None:
        """Reads a log; one that has ended has no cursor any more."""
        start = cursor = self.cursors.get(training_id)
        while True:
            page = await self._store.poll(training_id, self._user_id, cursor, BATCH)
            if start:
                check_history(start, page.view)
            self._admissions.know(training_id, self._user_id)
            for event in page.events:
                self._add(event)
                self.cursors[training_id] = event.sequence
            cursor = self.cursors[training_id] = page.cursor
            if len(page.events) < BATCH:
                break
        if page.view.ended:
            del self.cursors[training_id]
