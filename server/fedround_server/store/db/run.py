"""Opens the database, migrates it, and runs verbs on threads of its own."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple

from fedround_server.batch import Batch
from fedround_server.counters import Counters
from fedround_server.domain.audit import AuditRecord, acting
from fedround_server.domain.errors import FedroundError
from fedround_server.store.db import connection, migrate
from fedround_server.store.db.group_commit import Call, Change, Joint, Transactions, answer
from fedround_server.store.db.lease import DatabaseClock, lease
from fedround_server.store.db.outage import outage
from fedround_server.store.db.replica_session import Listener, ReplicaSession
from fedround_server.store.db.server_lock import ServerLock
from fedround_server.store.db.waiting_calls import WaitingCalls
from fedround_server.store.tables.base import database_proxy

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

MAX_GROUP = 64
"""How many verbs share a commit at most."""


def discard(_records: Sequence[AuditRecord]) -> None:
    """Does nothing with what was changed."""


class Claim(Protocol):
    """What a server says of the place of its files."""

    def files_id(self) -> str:
        """Returns the id of the place."""

    def take(self, begin: Callable[[], AbstractContextManager[None]]) -> None:
        """Makes sure that it is the place of the database, or takes it, in transactions that a function begins."""


class Database:
    """A database, and the executor that all its verbs run on.

    SQLite has one thread, since it has a single writer: verbs that wait for it share a transaction, and so a sync of
    the disk. PostgreSQL has a small pool. A process has at most one database open: the tables are bound to it.
    """

    def __init__(
        self,
        url: str | Path,
        now: Callable[[], datetime] | None = None,
        *,
        no_sync: bool = False,
        counters: Counters | None = None,
        tell: Callable[[Sequence[AuditRecord]], None] = discard,
        claim: Claim | None = None,
        journal_id: str = "",
    ) -> None:
        """Connects nothing yet; the arguments are those of `Store`."""
        self._url = url
        self._journal_id = journal_id
        self._claim = claim
        self._counters = counters or Counters()
        self._tell = tell
        self.is_postgres = connection.is_postgres(url)
        self._name = connection.database_name(url)
        self._peewee = connection.connect(url, no_sync=no_sync, journal_id=journal_id)
        # A SQLite file needs no lock: it lies in the data directory, which belongs to one server.
        files_id = str if claim is None else claim.files_id
        self._server_lock = ServerLock(str(url), files_id, journal_id) if self.is_postgres else None
        self.clock = DatabaseClock()
        self._session: ReplicaSession | None = None
        self._waiting = WaitingCalls()
        self._transactions = Transactions(self._peewee, now or self.clock.now, self._more)
        self._batches: dict[str, Batch[Any, Any]] = {}
        threads = connection.POSTGRES_THREADS if self.is_postgres else 1
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="store")

    def open(self) -> None:
        """Connects and applies the missing migrations.

        Raises:
            RuntimeError: Another database is open in this process, or this one in another process; or `migrate` raises
                it.
            StoreUnavailable: The database does not answer.
        """
        if database_proxy.obj is not None:
            raise RuntimeError("a process has one open store at a time: close the other one first")
        database_proxy.initialize(self._peewee)
        try:
            # The lock comes first: no server may migrate a database that another one has for itself.
            with nullcontext() if self._server_lock is None else self._server_lock.starting():
                self._executor.submit(self._migrate).result()
                if self._claim is not None:
                    self._executor.submit(self._claim.take, self._transactions.begin).result()
        except BaseException:
            self.close()
            raise

    def join(self, name: str, version: str, listener: Listener) -> ReplicaSession:
        """Makes this process a replica, until the database is closed; `Store.join` describes the arguments.

        Raises:
            StoreUnavailable: The database does not answer.
            RuntimeError: A newer version has migrated it meanwhile, and this one cannot use it any more.
        """
        schema, journal_id = migrate.own_schema(), self._journal_id
        self._session = ReplicaSession(str(self._url), name, version, schema, journal_id, lease, self.clock, listener)
        self._session.open()
        return self._session

    def close(self) -> None:
        """Waits for running verbs and disconnects."""
        if self._session is not None:
            self._session.close()
        lease.leave()
        if not self.is_postgres:
            # A connection to SQLite belongs to its thread.
            self._executor.submit(connection.disconnect, self._peewee).result()
        self._executor.shutdown()
        if self.is_postgres:
            connection.disconnect(self._peewee)
        if self._server_lock is not None:
            self._server_lock.release()
        database_proxy.initialize(None)

    async def hold(self) -> None:
        """Makes sure that this process still holds the server lock; raises what `Store.hold` lists."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._hold)

    async def run(self, verb: Callable[[], R], name: str = "", joint: Joint | None = None) -> R:
        """Runs a verb in a transaction on the store's executor; its name is the prefix of its failpoints.

        Raises:
            StoreUnavailable: The database does not answer; nothing was changed, or the whole change was made.
        """
        lease.check()
        answered: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        call = Call(verb, name, acting.get(), answered, copy_context(), joint)
        self._waiting.add(call)
        try:
            self._executor.submit(self._serve)
        except RuntimeError:
            # The database is being closed: the call is not run.
            answered.cancel()
            raise
        return await answered

    def ask(
        self, answer_all: Callable[[Sequence[Any]], Sequence[R | FedroundError]], name: str, question: Any
    ) -> Coroutine[Any, Any, R]:
        """Answers a question of a batched verb, together with all others of its name that wait, in one transaction.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        batch = self._batches.get(name)
        if batch is None:
            batch = self._batches[name] = Batch(lambda asked: self.run(lambda: answer_all(asked), name))
        answered: Coroutine[Any, Any, R] = batch.ask(question)
        return answered

    def size_bytes(self) -> int:
        """Returns the size of the database, on a thread of its executor."""
        return connection.size_bytes(self._peewee)

    def take_snapshot(self) -> None:
        """Lets all statements of the transaction that has just begun see the same state, and change nothing.

        On SQLite they do so anyway: its only writer is the thread that reads.
        """
        if self.is_postgres:
            self._peewee.execute_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    def _serve(self) -> None:
        """Runs the verbs of the next transaction, if any wait that no other thread runs."""
        while calls := self._take():
            try:
                self._run(calls)
            finally:
                others_wait = self._waiting.finish(calls)
            if not others_wait or self._serve_later():
                return

    def _serve_later(self) -> bool:
        """Has a thread run the calls that came while others of their group were run; returns whether one will."""
        try:
            self._executor.submit(self._serve)
        except RuntimeError:
            # The executor is being shut down, and waits for what this thread does.
            return False
        return True

    def _take(self) -> list[Call]:
        """Takes the calls of one transaction: of SQLite all that wait, of PostgreSQL those that share statements."""
        return self._waiting.take_group(MAX_GROUP) if self.is_postgres else self._waiting.take_all(MAX_GROUP)

    def _more(self, calls: Sequence[Call]) -> Sequence[Call]:
        """Takes calls that can be run together with some, and came after these."""
        others = self._waiting.take_more(calls, MAX_GROUP) if self.is_postgres else []
        return [call for call in others if not call.answer.cancelled()]

    def _run(self, taken: Sequence[Call]) -> None:
        if calls := [call for call in taken if not call.answer.cancelled()]:
            begun = time.perf_counter()
            outcomes = self._transactions.run(calls)
            seconds = time.perf_counter() - begun
            committed = any(outcome.error is None for _, outcome in outcomes)
            if committed:
                outage.answered()
            answer(outcomes, functools.partial(self._count, seconds if committed else None), self._tell)

    def _count(self, seconds: float | None) -> None:
        """Counts a transaction by how long it took; None for one that was rolled back."""
        if seconds is not None:
            self._counters.commits.add(seconds)

    def _hold(self) -> None:
        if self._server_lock is not None:
            self._server_lock.hold()

    def _migrate(self) -> None:
        # One transaction: of several processes that open a SQLite file, one migrates and the others wait.
        migrate.migrate(self._peewee, self._name, self._transactions.begin)


@dataclass(frozen=True, slots=True)
class Verbs:
    """The verbs of one noun, and the database that they run on."""

    database: Database


Self = TypeVar("Self", bound=Verbs)


def verb(method: Callable[Concatenate[Self, P], R]) -> Callable[Concatenate[Self, P], Coroutine[Any, Any, R]]:
    """Turns a plain method into a verb: a coroutine function that runs it in a transaction on the store's executor.

    A transaction that has begun runs to its end, also if the caller is cancelled.
    """
    name = _name(method)

    @functools.wraps(method)
    async def run(self: Self, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.database.run(lambda: method(self, *args, **kwargs), name)

    return run  # type: ignore[return-value]  # wraps() makes a name of the positional self


def joined(
    together: Callable[[Sequence[tuple[*Ts]], Callable[[], Sequence[tuple[*Ts]]]], Sequence[Change]],
    key: Callable[[*Ts], Hashable],
) -> Callable[[Callable[[Self, *Ts], R]], Callable[[Self, *Ts], Coroutine[Any, Any, R]]]:
    """Returns a decorator like `verb`, of a method whose calls that wait at the same time share their statements.

    Args:
        together: Runs the first ones of some calls with equal keys, as `Joint.run` describes.
        key: Returns the key of a call.
    """

    def decorate(method: Callable[[Self, *Ts], R]) -> Callable[[Self, *Ts], Coroutine[Any, Any, R]]:
        name = _name(method)

        @functools.wraps(method)
        async def run(self: Self, *args: *Ts) -> R:
            joint = Joint((name, key(*args)), args, together)
            return await self.database.run(lambda: method(self, *args), name, joint)

        return run

    return decorate


def snapshot(method: Callable[Concatenate[Self, P], R]) -> Callable[Concatenate[Self, P], Coroutine[Any, Any, R]]:
    """Turns a method into a verb that only reads, and whose statements see no change that comes between them."""

    @functools.wraps(method)
    def read(self: Self, *args: P.args, **kwargs: P.kwargs) -> R:
        self.database.take_snapshot()
        return method(self, *args, **kwargs)

    return verb(read)  # type: ignore[arg-type]  # wraps() makes a name of the positional self


def batched(
    method: Callable[[Self, Sequence[tuple[*Ts]]], Sequence[R | FedroundError]],
) -> Callable[[Self, *Ts], Coroutine[Any, Any, R]]:
    """Turns a method that answers many questions into a verb that asks one.

    Questions that wait at the same time are answered in one transaction, which begins after the last of them was asked.
    A batched verb only reads. An error among the answers is raised to the caller that asked.
    """
    name = _name(method)

    @functools.wraps(method)
    def run(self: Self, *question: *Ts) -> Coroutine[Any, Any, R]:
        return self.database.ask(functools.partial(method, self), name, question)

    return run


def _name(method: Callable[..., Any]) -> str:
    return method.__qualname__.replace("Verbs", "").lower()
