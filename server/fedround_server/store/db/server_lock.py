"""The server lock: an advisory lock that makes a PostgreSQL database belong to one server."""

from typing import Any

from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.connection import in_one_line, postgres_settings

# Any constant that no other application of the database uses.
LOCK_KEY = 0x666564726F756E64
# The database may notice only after a moment that a server was killed.
LOCK_TIMEOUT = "5s"
SETTINGS = (
    f"SET lock_timeout = '{LOCK_TIMEOUT}'",
    # Without keepalives, the lock of a machine that has lost its network would be held for hours.
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)


class ServerLock:
    """An advisory lock in a session of its own: the database releases it when the process ends, however it ends."""

    def __init__(self, url: str) -> None:
        """Takes no lock yet."""
        self._url = url
        self._session: Any = None

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
        try:
            self._session = psycopg.connect(autocommit=True, **postgres_settings(self._url))
            for setting in SETTINGS:
                self._session.execute(setting)
            self._session.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        except psycopg.errors.LockNotAvailable:
            self.release()
            raise RuntimeError("another server uses this database: give each server one of its own") from None
        except psycopg.OperationalError as error:
            self.release()
            raise StoreUnavailable(f"the database does not answer: {in_one_line(error)}") from error

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._session is not None:
            self._session.close()
            self._session = None
