"""The server lock: an advisory lock that makes a PostgreSQL database belong to one server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.connection import KEEPALIVES, SESSION_KEY, in_one_line, postgres_settings

# Any constant that no other application of the database uses.
LOCK_KEY = 0x666564726F756E64
# The database may notice only after a moment that a server was killed.
LOCK_TIMEOUT = "5s"
SETTINGS = (f"SET lock_timeout = '{LOCK_TIMEOUT}'", *KEEPALIVES)


class ServerLock:
    """An advisory lock in a session of its own: the database releases it when the process ends, however it ends.

    It does not show whether transactions of a server that was killed are still in progress: `ServerConnections` does.
    """

    def __init__(self, url: str) -> None:
        """Takes no lock yet."""
        self._url = url
        self._session: Any = None

    def take(self) -> None:
        """Takes the lock, and waits until no transaction of an earlier server is in progress.

        Raises:
            RuntimeError: Another server holds it, or its transactions do not end.
            StoreUnavailable: The database does not answer.
        """
        with self._mapped_errors():
            self._take()
            for function in ("pg_advisory_lock", "pg_advisory_unlock"):
                self._session.execute(f"SELECT {function}(%s)", (SESSION_KEY,))

    def hold(self) -> None:
        """Takes the lock, or makes sure that it is still held; a restart of the database releases it.

        Raises:
            RuntimeError: Another server holds it.
            StoreUnavailable: The database does not answer.
        """
        # The driver is an extra.
        import psycopg

        try:
            if self._session is not None:
                self._session.execute("SELECT 1")
                return
        except psycopg.OperationalError:
            self.release()
        with self._mapped_errors():
            self._take()

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _take(self) -> None:
        import psycopg

        self._session = psycopg.connect(autocommit=True, **postgres_settings(self._url))
        for setting in SETTINGS:
            self._session.execute(setting)
        self._session.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        """Releases the lock if the block fails, and maps the error."""
        import psycopg

        try:
            yield
        except psycopg.errors.LockNotAvailable:
            self.release()
            raise RuntimeError("another server uses this database: give each server one of its own") from None
        except psycopg.OperationalError as error:
            self.release()
            raise StoreUnavailable(f"the database does not answer: {in_one_line(error)}") from error
