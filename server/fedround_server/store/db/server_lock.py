"""One server a PostgreSQL database: the claim that a server holds for as long as it lives."""

from typing import Any

from fedround_server.domain.errors import StoreUnavailable

# Any constant will do, if nothing else takes it.
LOCK_KEY = 0x666564726F756E64
# Of a server that was killed just now, the database may not know yet.
LOCK_TIMEOUT = "5s"
SETTINGS = (
    f"SET lock_timeout = '{LOCK_TIMEOUT}'",
    # A machine that is gone says nothing: without these, its claim would outlive it by hours.
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)


class ServerLock:
    """An advisory lock in a session of its own: it goes with the process, however that ends."""

    def __init__(self, url: str) -> None:
        """Claims nothing yet.

        Args:
            url: A `postgresql://` URL.
        """
        self._url = url
        self._session: Any = None

    def hold(self) -> None:
        """Takes the claim, unless it is held; a restart of the database loses it, and then it is taken again.

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
            self._session = psycopg.connect(self._url, autocommit=True)
            for setting in SETTINGS:
                self._session.execute(setting)
            self._session.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        except psycopg.errors.LockNotAvailable:
            self.release()
            raise RuntimeError("another server uses this database: give each server one of its own") from None
        except psycopg.OperationalError as error:
            self.release()
            raise StoreUnavailable(f"the database does not answer: {error}") from error

    def release(self) -> None:
        """Ends the claim."""
        if self._session is not None:
            self._session.close()
            self._session = None
