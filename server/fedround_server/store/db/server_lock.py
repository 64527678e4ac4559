"""The server lock: an advisory lock that servers share which may use a PostgreSQL database at the same time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.connection import (
    KEEPALIVES,
    NETWORK,
    SESSION_KEY,
    in_one_line,
    postgres_settings,
    session_key,
)
from fedround_server.store.db.lease import LEASE_SECONDS, NOW
from fedround_server.store.db.outage import outage

# Any constants that no other application of the database uses. The first is held by all servers: exclusively by those
# of versions before there were replicas.
LOCK_KEY = 0x666564726F756E64
START_KEY = 0x666564726F756E66
# The database may notice only after a moment that a server was killed.
LOCK_TIMEOUT = "5s"
START_TIMEOUT = "10min"
"""How long another server's start may take: it may migrate the database."""
SETTINGS = (f"SET lock_timeout = '{LOCK_TIMEOUT}'", *KEEPALIVES)
UNSHARED = "another server uses this database, and is of a version that shares it with none: stop it first"
ELSEWHERE = (
    "another server uses this database, and has its files elsewhere: give both the same place for files, or each a"
    " database of its own"
)
STARTING = "another server starts for long, or migrates the database: try again when it has ended"
COMMITTING = "transactions of an earlier server are in progress in this database: try again when they have ended"
WAIT_SECONDS = LEASE_SECONDS
"""How long a server with its files elsewhere waits for the leases of those that were killed."""
PAUSE_SECONDS = 0.2
# An earlier server with the same journal has ended.
LEASED = f"""
SELECT EXISTS (SELECT FROM replica WHERE expire_time > {NOW} AND (journal_id = '' OR journal_id <> %s))
"""  # noqa: S608 -- constants


class ServerLock:
    """An advisory lock in a session of its own: the database releases it when the process ends, however it ends.

    It does not show whether transactions of a server that was killed are still in progress: `ServerConnections` does.
    """

    def __init__(self, url: str, files_id: Callable[[], str] = str, journal_id: str = "") -> None:
        """Takes no lock yet.

        Args:
            url: The database.
            files_id: Returns the id of the place where the server has its files; it is asked while others do not start.
            journal_id: The id of its journal.
        """
        self._url = url
        self._files_id = files_id
        self._journal_id = journal_id
        self._session: Any = None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Takes the lock; the block migrates the database, while no other server starts, and says where its files are.

        Before that, it waits until no transaction is in progress of an earlier server with this journal.

        Raises:
            RuntimeError: Another server uses the database that does not share it or has its files elsewhere, or
                one starts for too long, or transactions of an earlier one do not end.
            StoreUnavailable: The database does not answer.
        """
        with self._mapped_errors(STARTING):
            self._connect()
            self._execute(f"SET lock_timeout = '{START_TIMEOUT}'")
            self._execute("SELECT pg_advisory_lock(%s)", START_KEY)
            self._execute(SETTINGS[0])
        with self._mapped_errors():
            is_alone = self._take()
        with self._mapped_errors(COMMITTING):
            # Earlier versions had one key for all.
            for key in (SESSION_KEY, session_key(self._journal_id)):
                for function in ("pg_advisory_lock", "pg_advisory_unlock"):
                    self._execute(f"SELECT {function}(%s)", key)
        try:
            yield
            with self._mapped_errors():
                if is_alone:
                    self._share()
                self._execute("SELECT pg_advisory_unlock(%s)", START_KEY)
        except BaseException:
            self.release()
            raise

    def hold(self) -> None:
        """Makes sure that the lock is held; a restart of the database releases it.

        Raises:
            RuntimeError: Servers that have their files elsewhere have taken the database meanwhile.
            StoreUnavailable: The database does not answer, or another server has it for itself while it starts.
        """
        # The driver is an extra.
        import psycopg

        try:
            if self._session is not None:
                self._session.execute("SELECT 1")
                return
        except psycopg.OperationalError:
            self.release()
        with self._mapped_errors(STARTING, StoreUnavailable):
            self._connect()
            self._execute("SELECT pg_advisory_lock_shared(%s)", LOCK_KEY)
            if self._files_elsewhere():
                self.release()
                raise RuntimeError(ELSEWHERE)

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _connect(self) -> None:
        import psycopg

        self._session = psycopg.connect(autocommit=True, **(NETWORK | postgres_settings(self._url)))
        for setting in SETTINGS:
            self._execute(setting)

    def _execute(self, statement: str, *values: object) -> Any:
        """Executes a statement; returns the first value that it finds, if any."""
        cursor = self._session.execute(statement, values)
        return cursor.fetchone()[0] if cursor.description else None

    def _take(self) -> bool:
        """Takes the lock: exclusively, and returns True, if no server uses the database; else as one of several.

        No other server takes it exclusively meanwhile.

        Raises:
            RuntimeError: The other servers have their files elsewhere.
        """
        if not self._execute("SELECT pg_try_advisory_lock(%s)", LOCK_KEY):
            self._execute("SELECT pg_advisory_lock_shared(%s)", LOCK_KEY)
        elif not self._has_replicas():
            return True
        else:
            # A restart of the database has released their locks, which they take again.
            self._share()
        if not self._files_elsewhere():
            return False
        self._execute("SELECT pg_advisory_unlock_shared(%s)", LOCK_KEY)
        import psycopg

        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                self._execute("SELECT pg_advisory_lock(%s)", LOCK_KEY)
            except psycopg.errors.LockNotAvailable:
                break
            if not self._has_replicas():
                return True
            self._execute("SELECT pg_advisory_unlock(%s)", LOCK_KEY)
            if time.monotonic() > end:
                break
            time.sleep(PAUSE_SECONDS)
        self.release()
        raise RuntimeError(ELSEWHERE)

    def _share(self) -> None:
        for function in ("pg_advisory_lock_shared", "pg_advisory_unlock"):
            self._execute(f"SELECT {function}(%s)", LOCK_KEY)

    def _has_replicas(self) -> bool:
        """Returns whether other servers have a lease: they use the database, though they may have lost the lock."""
        if self._execute("SELECT to_regclass('replica')") is None:
            return False
        return bool(self._execute(LEASED, self._journal_id))

    def _files_elsewhere(self) -> bool:
        """Returns whether the servers that use the database have their files in another place."""
        return bool(self._execute("SELECT files_id FROM server_state") != self._files_id())

    @contextmanager
    def _mapped_errors(self, refused: str = UNSHARED, kind: type[Exception] = RuntimeError) -> Iterator[None]:
        """Releases the lock if the block fails, and maps the error; to a kind and a message if a lock is not free."""
        import psycopg

        try:
            yield
        except psycopg.errors.LockNotAvailable:
            self.release()
            if kind is StoreUnavailable:
                outage.failed(refused)
            raise kind(refused) from None
        except psycopg.OperationalError as error:
            self.release()
            outage.failed(in_one_line(error))
            raise StoreUnavailable(f"the database does not answer: {in_one_line(error)}") from error
