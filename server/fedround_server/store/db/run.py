"""Opens the database, migrates it, and runs verbs in transactions on threads of its own."""

import asyncio
import functools
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar, TypeVarTuple

import peewee
from playhouse import migrations
from playhouse.pool import PooledPostgresqlDatabase

from fedround_server.domain.audit import acting
from fedround_server.domain.errors import FedroundError, StoreUnavailable
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import recording
from fedround_server.store.db.batching import Batch
from fedround_server.store.db.server_lock import ServerLock
from fedround_server.store.tables.base import database_proxy

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

MIGRATIONS = Path(__file__).parents[1] / "tables" / "migrations"
POSTGRES_THREADS = 4
MAX_GROUP = 64


def utc_now() -> datetime:
    """Returns the machine's time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Call:
    """A verb that waits to be run, and who waits for it."""

    verb: Callable[[], Any]
    name: str
    user_id: str
    answer: asyncio.Future[Any]

    def end(self, run: Callable[["_Call"], Any]) -> Callable[[], None]:
        """Runs a function; returns what answers with what it returned or raised, to be called in the event loop."""
        try:
            return functools.partial(self._tell, self.answer.set_result, run(self))
        except BaseException as error:
            return functools.partial(self._tell, self.answer.set_exception, error)

    def _tell(self, way: Callable[[Any], None], outcome: Any) -> None:
        # Who waited may have been cancelled.
        if not self.answer.done():
            way(outcome)


class Database:
    """A database, and the executor that all its verbs run on.

    SQLite has one thread, hence a single writer: verbs that wait for it share a transaction, and so a sync of the disk;
    none is answered before the commit. PostgreSQL has a small pool. At most one database is open
    in a process: the tables are bound to it.
    """

    def __init__(self, url: str | Path, now: Callable[[], datetime] = utc_now) -> None:
        """Remembers where the database is.

        Args:
            url: A `postgresql://` URL, or the path of a SQLite file.
            now: Tells the time of entries of the audit log.
        """
        self._now = now
        self.is_postgres = isinstance(url, str) and url.startswith(("postgresql://", "postgres://"))
        self._peewee = _postgres(str(url)) if self.is_postgres else _sqlite(Path(url))
        # A SQLite file is in the data directory, which a server has for itself.
        self._server_lock = ServerLock(str(url)) if self.is_postgres else None
        self._waiting: deque[_Call] = deque()
        self._joints: dict[str, Batch[Any, Any]] = {}
        self._executor = ThreadPoolExecutor(POSTGRES_THREADS if self.is_postgres else 1, thread_name_prefix="store")

    def open(self) -> None:
        """Connects and applies the migrations that are missing.

        Raises:
            RuntimeError: Another database is open in this process, or this one in another process.
            StoreUnavailable: The database does not answer.
        """
        if database_proxy.obj is not None:
            raise RuntimeError("a process has one open store at a time: close the other one first")
        database_proxy.initialize(self._peewee)
        try:
            # First: a newer server must not migrate the database of one that runs.
            self._hold()
            self._executor.submit(self._migrate).result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Waits for the verbs under way and disconnects."""
        self._executor.submit(self._disconnect).result()
        self._executor.shutdown()
        if self._server_lock is not None:
            self._server_lock.release()
        database_proxy.initialize(None)

    async def hold(self) -> None:
        """Makes sure that the database is still this process's alone.

        Raises:
            RuntimeError: Another server has it, since the database was restarted.
            StoreUnavailable: The database does not answer.
        """
        await asyncio.get_running_loop().run_in_executor(self._executor, self._hold)

    async def run(self, verb: Callable[[], R], name: str = "") -> R:
        """Runs a verb in one transaction on the store's executor.

        Args:
            verb: What to run.
            name: How its failpoints are called.

        Raises:
            StoreUnavailable: The database does not answer; nothing was changed, or the change is whole.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(verb, name, acting.get(), answer))
        self._executor.submit(self._serve)
        return await answer

    def ask(
        self, answer: Callable[[Sequence[Any]], Sequence[R | FedroundError]], name: str, question: Any
    ) -> Coroutine[Any, Any, R]:
        """Answers a question, with all others of its name that wait, in one transaction on the store's executor.

        Args:
            answer: Answers questions.
            name: What kind of questions; how the failpoints are called.
            question: The question.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        joint = self._joints.get(name)
        if joint is None:
            joint = self._joints[name] = Batch(lambda asked: self.run(lambda: answer(asked), name))
        found: Coroutine[Any, Any, R] = joint.ask(question)
        return found

    def _serve(self) -> None:
        """Runs the next verb that waits, on SQLite all that wait."""
        size = 1 if self.is_postgres else min(len(self._waiting), MAX_GROUP)
        taken = [self._waiting.popleft() for _ in range(size)]
        calls = [call for call in taken if not call.answer.cancelled()]
        if len(calls) > 1 and (self._run_together(calls, guarded=False) or self._run_together(calls, guarded=True)):
            return
        for call in calls:
            _answer([call], [self._run_alone])

    def _run_alone(self, call: _Call) -> Any:
        with _answering():
            try:
                result = self._attempt(call.verb, call.name, call.user_id)
            except peewee.IntegrityError:
                # Somebody else inserted the same key between our look and our insert: the second look finds it.
                result = self._attempt(call.verb, call.name, call.user_id)
        return _committed(result, call)

    def _run_together(self, calls: Sequence[_Call], *, guarded: bool) -> bool:
        """Runs verbs in one transaction, and answers them; unless one has to be undone: then none has run.

        One that raises behind what it wrote is undone by its savepoint, if it has one. Nearly none does that, so they
        are tried without first: a savepoint takes two statements. One that has trouble with the database may have ended
        the transaction.

        Args:
            calls: Which verbs.
            guarded: Whether each has a savepoint.
        """
        outcomes: list[Callable[[_Call], Any]] = []
        begun = False
        try:
            with _answering(), self._connection(), self._transaction():
                begun = True
                outcomes.extend(self._outcome(call, guarded=guarded) for call in calls)
        except BaseException as error:
            if begun and len(outcomes) < len(calls):
                return False
            outcomes = [_raising(error)] * len(calls)
        _answer(calls, outcomes)
        return True

    def _outcome(self, call: _Call, *, guarded: bool) -> Callable[[_Call], Any]:
        run = self._attempt if guarded else self._do
        written = self._written()
        try:
            result = run(call.verb, call.name, call.user_id)
        except (peewee.PeeweeException, sqlite3.Error):
            raise
        except BaseException as error:
            if not guarded and self._written() != written:
                raise
            return _raising(error)
        return functools.partial(_committed, result)

    def _written(self) -> int:
        """Returns how many rows SQLite has written since it was opened."""
        count: int = self._peewee.connection().total_changes
        return count

    def _attempt(self, verb: Callable[[], R], name: str, user_id: str) -> R:
        with self._connection(), self._transaction():
            return self._do(verb, name, user_id)

    def _do(self, verb: Callable[[], R], name: str, user_id: str) -> R:
        reached(f"{name}.begun")
        with recording(user_id, self._now):
            result = verb()
        reached(f"{name}.written")
        return result

    @contextmanager
    def _connection(self) -> Iterator[None]:
        if self.is_postgres:
            with self._peewee.connection_context():
                yield
        else:
            self._peewee.connect(reuse_if_open=True)
            yield

    def _transaction(self) -> Any:
        # Within another one it is a savepoint. Without IMMEDIATE, a SQLite transaction that becomes a writer fails at
        # once when another one writes.
        return self._peewee.atomic() if self.is_postgres else self._peewee.atomic("IMMEDIATE")

    def _hold(self) -> None:
        if self._server_lock is not None:
            self._server_lock.hold()

    def _migrate(self) -> None:
        # One transaction for all that is missing: of several that open a SQLite file, one migrates and the others wait.
        with self._connection(), self._transaction():
            migrations.run(self._peewee, str(MIGRATIONS))

    def _disconnect(self) -> None:
        if isinstance(self._peewee, PooledPostgresqlDatabase):
            self._peewee.close_all()
        else:
            self._peewee.close()


class HasDatabase(Protocol):
    """What carries verbs."""

    @property
    def database(self) -> Database:
        """Where the verbs run."""


Self = TypeVar("Self", bound=HasDatabase)


def verb(method: Callable[Concatenate[Self, P], R]) -> Callable[Concatenate[Self, P], Coroutine[Any, Any, R]]:
    """Turns a plain method into a verb: awaited by the caller, run as one transaction on the store's executor.

    Once begun, a transaction runs to its end, also if the caller is cancelled.
    """

    name = method.__qualname__.replace("Verbs", "").lower()

    @functools.wraps(method)
    async def run(self: Self, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.database.run(lambda: method(self, *args, **kwargs), name)

    return run  # type: ignore[return-value]  # wraps() makes a name of the positional self


def batched(
    method: Callable[[Self, Sequence[tuple[*Ts]]], Sequence[R | FedroundError]],
) -> Callable[[Self, *Ts], Coroutine[Any, Any, R]]:
    """Turns a method that answers many questions into a verb that asks one: those asked at a time go together.

    Each question is answered by a transaction that begins after it was asked, as if it were alone. Such a verb changes
    nothing. Among the answers, an error is raised to the one that asked.
    """
    name = method.__qualname__.replace("Verbs", "").lower()

    @functools.wraps(method)
    def run(self: Self, *question: *Ts) -> Coroutine[Any, Any, R]:
        return self.database.ask(functools.partial(method, self), name, question)

    return run


@contextmanager
def reading(url: str | Path) -> Iterator[None]:
    """Binds the tables to a database for the time of a block, read-only: it may be a running server's.

    Args:
        url: As for `Database`.

    Raises:
        StoreUnavailable: There is no such database, or it does not answer.
    """
    is_postgres = isinstance(url, str) and url.startswith(("postgresql://", "postgres://"))
    if is_postgres:
        database = _postgres(str(url))
    else:
        database = peewee.SqliteDatabase(f"{Path(url).absolute().as_uri()}?mode=ro", uri=True)
    database_proxy.initialize(database)
    try:
        with database.connection_context():
            if is_postgres:
                database.execute_sql("SET default_transaction_read_only = on")
            yield
    except (peewee.DatabaseError, peewee.InterfaceError) as error:
        raise StoreUnavailable(f"the database cannot be read: {error}") from error
    finally:
        if is_postgres:
            database.close_all()
        database_proxy.initialize(None)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (peewee.OperationalError, peewee.InterfaceError) as error:
        log.warning("the database does not answer: %s", _first(error))
        raise StoreUnavailable("the database does not answer: try again") from error


def _answer(calls: Sequence[_Call], ways: Sequence[Callable[[_Call], Any]]) -> None:
    """Ends each call in its way, and wakes the event loop once for all: that takes as long as a statement."""
    ended = [(call.answer.get_loop(), call.end(way)) for call, way in zip(calls, ways, strict=True)]
    for loop, some in groupby(ended, key=itemgetter(0)):
        # Nobody waits in a closed one.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_run_all, [tell for _, tell in some])


def _run_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _committed(result: R, call: _Call) -> R:
    reached(f"{call.name}.committed")
    return result


def _raising(error: BaseException) -> Callable[[Any], NoReturn]:
    def tell(_: Any) -> NoReturn:
        raise error

    return tell


def _first(error: BaseException) -> BaseException:
    """Returns what went wrong first: SQLite ends a transaction without room by itself, and then none can be ended."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _sqlite(path: Path) -> peewee.SqliteDatabase:
    # WAL with synchronous=NORMAL does not sync at a commit; FULL does, and a receipt is a promise.
    pragmas = {"journal_mode": "wal", "synchronous": "full", "busy_timeout": 10_000}
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return peewee.SqliteDatabase(str(path), pragmas=pragmas, thread_safe=True)


def _postgres(url: str) -> PooledPostgresqlDatabase:
    try:
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise RuntimeError("PostgreSQL wants its driver: pip install 'fedround[postgres]'") from error
    settings = conninfo_to_dict(url)
    return PooledPostgresqlDatabase(
        settings.pop("dbname", None) or "fedround",
        max_connections=POSTGRES_THREADS + 1,
        prefer_psycopg3=True,
        **settings,
    )
