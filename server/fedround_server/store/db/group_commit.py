"""Runs verbs in transactions. On SQLite, verbs that wait at the same time share one commit.

On both databases, calls of a verb that is joined (`Joint`) share their statements, too.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import peewee

from fedround_server.domain.audit import AuditRecord
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import collecting, write
from fedround_server.store.db.connection import Connections, unavailable

log = logging.getLogger(__name__)
Change = tuple[Any, Sequence[AuditRecord]]
"""The result of a call, and the records of what it has changed."""
Arguments = tuple[Any, ...]
"""The arguments of a call."""


@dataclass(frozen=True, slots=True)
class Joint:
    """How a call is run together with others that wait.

    Attributes:
        key: Equal for the calls that may be.
        args: The arguments of the call.
        run: Is given the arguments of such calls, and a function that returns those of more calls, which have come
            meanwhile: it is called at most once, when what they change is locked. Runs the first ones, as many as it
            can, and returns their changes. They are the same as if each call had been run by itself, in this order.
    """

    key: Hashable
    args: Arguments
    run: Callable[[Sequence[Arguments], Callable[[], Sequence[Arguments]]], Sequence[Change]]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of a verb that waits to be run.

    Attributes:
        verb: The function to run in a transaction.
        name: The prefix of its failpoints.
        user_id: The user who makes the call; empty for the server itself.
        answer: Receives the result or the error, in the caller's event loop.
        context: The caller's, for the lines of the log about what the call has changed.
        joint: How it is run together with others; None if it is not.
    """

    verb: Callable[[], Any]
    name: str
    user_id: str
    answer: asyncio.Future[Any]
    context: Context
    joint: Joint | None = None

    @property
    def group(self) -> Hashable:
        """Equal for the calls that may be run together."""
        return self if self.joint is None else self.joint.key


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call, and what it has changed; or its error."""

    result: Any = None
    error: BaseException | None = None
    records: Sequence[AuditRecord] = ()


@dataclass(slots=True)
class Attempt:
    """An attempt to run the first ones of some calls.

    Attributes:
        calls: The calls.
        together: Whether several may be run, with the same statements. It becomes False if that is not possible: then
            the first one is run by itself.
        grows: Whether calls that come while the first ones wait for a lock are appended, to be run with them.
    """

    calls: list[Call]
    together: bool = False
    grows: bool = False


Run = Callable[[Attempt], Sequence[Outcome]]
"""Makes an attempt; returns the outcomes of the calls that were run, none if they have failed together."""


class Transactions:
    """Transactions of one database."""

    def __init__(
        self,
        database: Connections,
        now: Callable[[], datetime],
        more: Callable[[Sequence[Call]], Sequence[Call]],
    ) -> None:
        """Connects nothing yet.

        Args:
            database: The connections.
            now: Returns the time of entries of the audit log.
            more: Returns calls that can be run together with some, and have come after these.
        """
        self._database = database
        self._now = now
        self._more = more
        self._is_sqlite = isinstance(database, peewee.SqliteDatabase)

    def run(self, calls: Sequence[Call]) -> Sequence[tuple[Call, Outcome]]:
        """Runs calls; those of SQLite share one transaction and one commit.

        Each call of a group has a savepoint. A call that raises is undone by its savepoint and changes nothing for the
        others. Each call runs once, unless the database fails in the middle of the group: a full disk, for example,
        makes SQLite end the transaction itself. Nothing was changed then, and each call runs again by itself.

        Calls of a joined verb that follow each other have one savepoint, on PostgreSQL one transaction, as far as they
        can be run together. If that fails, nothing was changed, and each runs again by itself, as long as the database
        answers. On PostgreSQL, calls that come while the first ones wait for a lock are run with them.

        Returns:
            All calls that were run, with their outcomes; all that changed something are committed.
        """
        if not self._is_sqlite or len(calls) == 1:
            return list(self._in_order(calls, self._run_in_transaction))
        found: list[tuple[Call, Outcome]] = []
        begun = False
        try:
            with unavailable(), self.begin():
                begun = True
                found.extend(self._in_order(calls, self._run_in_savepoint))
        except BaseException as error:
            if begun and len(found) < len(calls):
                return [(call, self._run_in_transaction(Attempt([call]))[0]) for call in calls]
            return [(call, Outcome(error=error)) for call in calls]
        _mark_committed(found)
        return found

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Runs the block in a transaction, on a connection of this thread."""
        if self._is_sqlite:
            self._database.connect(reuse_if_open=True)
            # Without IMMEDIATE, a transaction that becomes a writer fails at once while another one writes.
            with self._database.atomic("IMMEDIATE"):
                yield
        else:
            with self._database.connection_context(), self._database.atomic():
                yield

    def _run_in_transaction(self, attempt: Attempt) -> Sequence[Outcome]:
        outcomes = self._try_in_transaction(attempt)
        if any(isinstance(outcome.error, peewee.IntegrityError) for outcome in outcomes):
            # Another transaction inserted the same key after this one had looked for it: now the verb will find it.
            outcomes = self._try_in_transaction(attempt)
        _mark_committed(zip(attempt.calls, outcomes, strict=False))
        return outcomes

    def _try_in_transaction(self, attempt: Attempt) -> Sequence[Outcome]:
        outcomes: Sequence[Outcome] = ()
        try:
            with unavailable(), self.begin():
                outcomes = self._run(attempt)
        except BaseException as error:
            # If the commit has failed, it is not known whether it was made: calls that had outcomes do not run again.
            return [Outcome(error=error)] * len(outcomes) or _failed(attempt, error)
        return outcomes

    def _run_in_savepoint(self, attempt: Attempt) -> Sequence[Outcome]:
        outcomes: Sequence[Outcome] = ()
        self._database.execute_sql("SAVEPOINT verb")
        try:
            with unavailable():
                outcomes = self._run(attempt)
        except BaseException as error:
            # Both fail if the database has ended the transaction.
            self._database.execute_sql("ROLLBACK TO verb")
            return _failed(attempt, error)
        self._database.execute_sql("RELEASE verb")
        return outcomes

    def _run(self, attempt: Attempt) -> Sequence[Outcome]:
        """Runs calls in the transaction that has begun; returns the outcomes of those that were run."""
        calls = attempt.calls
        for call in calls:
            reached(f"{call.name}.begun")
        changes = self._run_together(attempt) if attempt.together else ()
        if not changes:
            # Nothing was changed, so the first one can be run in the same transaction.
            attempt.together = False
            changes = _run_alone(calls[0])
        done = list(zip(calls, changes, strict=False))
        write([(call.user_id, records) for call, (_, records) in done], self._now)
        for call, _ in done:
            reached(f"{call.name}.written")
        return [Outcome(result, records=records) for result, records in changes]

    def _run_together(self, attempt: Attempt) -> Sequence[Change]:
        joints = [call.joint for call in attempt.calls if call.joint is not None]

        def more() -> Sequence[Arguments]:
            others = self._more(attempt.calls) if attempt.grows else ()
            attempt.calls.extend(others)
            for call in others:
                reached(f"{call.name}.begun")
            return [call.joint.args for call in others if call.joint is not None]

        return joints[0].run([joint.args for joint in joints], more)

    def _in_order(self, calls: Sequence[Call], run: Run) -> Iterator[tuple[Call, Outcome]]:
        """Yields calls with their outcomes; those that may be run together are, up to one that cannot."""
        for _, group in groupby(calls, key=lambda call: call.group):
            left = list(group)
            # Only at first: otherwise no caller would be answered as long as others come.
            grows = left[0].joint is not None and not self._is_sqlite
            while left:
                attempt, grows = Attempt(left, len(left) > 1 or grows, grows), False
                outcomes = run(attempt)
                left = attempt.calls
                if not attempt.together or not outcomes:
                    # What keeps the first one from it often holds for the others, too: a closed round, for example.
                    outcomes = [*outcomes, *_one_by_one(left[len(outcomes) :], run)]
                elif len(outcomes) < len(left):
                    outcomes = [*outcomes, *run(Attempt([left[len(outcomes)]]))]
                yield from zip(left, outcomes, strict=False)
                left = left[len(outcomes) :]


def _failed(attempt: Attempt, error: BaseException) -> Sequence[Outcome]:
    """Returns the outcome of a call that has failed by itself; none for several, each of which is run again."""
    is_one = len(attempt.calls) == 1
    if not attempt.together or (is_one and isinstance(error, StoreUnavailable)):
        return [Outcome(error=error)]
    # No caller is answered with it, so the operator is told.
    what = "a call fails as one of several" if is_one else f"{len(attempt.calls)} calls fail together"
    log.warning("%s: %s, and each is run by itself: %r", attempt.calls[0].name, what, error)
    return ()


def _one_by_one(calls: Sequence[Call], run: Run) -> list[Outcome]:
    """Returns the outcomes of calls that are each run by itself, until the database does not answer one."""
    outcomes: list[Outcome] = []
    for call in calls:
        outcomes += run(Attempt([call]))
        if isinstance(outcomes[-1].error, StoreUnavailable):
            # The others would wait for a connection one after the other, and all callers for the last one.
            break
    return outcomes + outcomes[-1:] * (len(calls) - len(outcomes))


def _run_alone(call: Call) -> Sequence[Change]:
    with collecting() as records:
        result = call.verb()
    return [(result, records)]


def answer(
    outcomes: Sequence[tuple[Call, Outcome]],
    count: Callable[[], None],
    tell: Callable[[Sequence[AuditRecord]], None],
) -> None:
    """Gives calls their outcomes; wakes their event loop once for all, as that takes as long as a statement.

    Args:
        outcomes: The calls with their outcomes.
        count: Called in the event loop of the first call, before it gets its outcome.
        tell: Called in the event loop and the context of each call that has changed something, with what that is.
    """
    for loop, some in groupby(outcomes, key=lambda pair: pair[0].answer.get_loop()):
        # In a closed loop no caller waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_set_answers, list(some), count, tell)
        count = _count_nothing


def _count_nothing() -> None:
    pass


def _set_answers(
    answered: Sequence[tuple[Call, Outcome]],
    count: Callable[[], None],
    tell: Callable[[Sequence[AuditRecord]], None],
) -> None:
    count()
    for call, outcome in answered:
        # The caller may have been cancelled.
        if call.answer.done():
            continue
        if outcome.error is None:
            call.answer.set_result(outcome.result)
        else:
            call.answer.set_exception(outcome.error)
    # The callers go on afterwards.
    for call, outcome in answered:
        if outcome.records:
            call.context.run(tell, outcome.records)


def _mark_committed(outcomes: Iterable[tuple[Call, Outcome]]) -> None:
    for call, outcome in outcomes:
        if outcome.error is None:
            reached(f"{call.name}.committed")
