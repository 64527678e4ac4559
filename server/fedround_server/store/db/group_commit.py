"""Runs verbs in transactions. On SQLite, verbs that wait at the same time share one commit."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import peewee

from fedround_server.domain.audit import AuditRecord
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import recording
from fedround_server.store.db.connection import Connections, unavailable


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a verb that waits to be run.

    Attributes:
        verb: The function to run in a transaction.
        name: The prefix of its failpoints.
        user_id: The user who makes the call; empty for the server itself.
        answer: Receives the result or the error, in the caller's event loop.
        context: The caller's, for the lines of the log about what the call has changed.
    """

    verb: Callable[[], Any]
    name: str
    user_id: str
    answer: asyncio.Future[Any]
    context: Context


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call, and what it has changed; or its error."""

    result: Any = None
    error: BaseException | None = None
    records: Sequence[AuditRecord] = ()


class Transactions:
    """Transactions of one database."""

    def __init__(self, database: Connections, now: Callable[[], datetime]) -> None:
        """Connects nothing yet; `now` returns the time of entries of the audit log."""
        self._database = database
        self._now = now
        self._is_sqlite = isinstance(database, peewee.SqliteDatabase)

    def run(self, calls: Sequence[Call]) -> Sequence[Outcome]:
        """Runs calls; those of SQLite share one transaction and one commit.

        Each call of a group has a savepoint. A call that raises is undone by its savepoint and changes nothing for the
        others. Each call runs once, unless the database fails in the middle of the group: a full disk, for example,
        makes SQLite end the transaction itself. Nothing was changed then, and each call runs again by itself.

        Returns:
            The outcomes, in the order of the calls; all that changed something are committed.
        """
        if not self._is_sqlite or len(calls) == 1:
            return [self._run_alone(call) for call in calls]
        outcomes: list[Outcome] = []
        begun = False
        try:
            with unavailable(), self.begin():
                begun = True
                outcomes.extend(self._run_in_savepoint(call) for call in calls)
        except BaseException as error:
            if begun and len(outcomes) < len(calls):
                return [self._run_alone(call) for call in calls]
            return [Outcome(error=error)] * len(calls)
        for call, outcome in zip(calls, outcomes, strict=True):
            _mark_committed(call, outcome)
        return outcomes

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

    def _run_alone(self, call: Call) -> Outcome:
        outcome = _outcome(self._run_in_transaction, call)
        if isinstance(outcome.error, peewee.IntegrityError):
            # Another transaction inserted the same key after this one had looked for it: now the verb will find it.
            outcome = _outcome(self._run_in_transaction, call)
        _mark_committed(call, outcome)
        return outcome

    def _run_in_transaction(self, call: Call) -> Outcome:
        with self.begin():
            return self._run(call)

    def _run_in_savepoint(self, call: Call) -> Outcome:
        self._database.execute_sql("SAVEPOINT verb")
        outcome = _outcome(self._run, call)
        # Both fail if the database has ended the transaction.
        self._database.execute_sql("RELEASE verb" if outcome.error is None else "ROLLBACK TO verb")
        return outcome

    def _run(self, call: Call) -> Outcome:
        reached(f"{call.name}.begun")
        with recording(call.user_id, self._now) as records:
            result = call.verb()
        reached(f"{call.name}.written")
        return Outcome(result, records=records)


def answer(
    calls: Sequence[Call],
    outcomes: Sequence[Outcome],
    count: Callable[[], None],
    tell: Callable[[Sequence[AuditRecord]], None],
) -> None:
    """Gives calls their outcomes; wakes their event loop once for all, as that takes as long as a statement.

    Args:
        calls: The calls.
        outcomes: Their outcomes.
        count: Called in the event loop of the first call, before it gets its outcome.
        tell: Called in the event loop and the context of each call that has changed something, with what that is.
    """
    for loop, some in groupby(zip(calls, outcomes, strict=True), key=lambda pair: pair[0].answer.get_loop()):
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


def _outcome(run: Callable[[Call], Outcome], call: Call) -> Outcome:
    try:
        with unavailable():
            return run(call)
    except BaseException as error:
        return Outcome(error=error)


def _mark_committed(call: Call, outcome: Outcome) -> None:
    if outcome.error is None:
        reached(f"{call.name}.committed")
