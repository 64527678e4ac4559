"""The lease by which this process is a replica, and the time by the clock of its database."""

import time
from datetime import UTC, datetime

from fedround_server.domain.errors import StoreUnavailable

LEASE_SECONDS = 15.0
RENEWAL_SECONDS = 5.0
FRESH_SECONDS = 3.0
"""How old what a replica knows of changes of credentials may be, while it relies on it."""
NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""The time in SQL, as `InstantField` stores it."""
LOST = "this server has lost its lease on the database: try again, or call another replica"


def elapsed() -> float:
    """Returns seconds by a clock that is never set, and that goes on while the process or the machine is paused."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """The lease of a process. Any thread may read it; `ReplicaSession` writes it.

    A process that serves a SQLite database, or that does not serve, has none, and needs none.

    Attributes:
        replica_id: The id of the replica, also while its lease has ended and it has no new one; None if it had none.
        is_draining: Whether the rounds that are closed here from now on are for another replica to aggregate.
    """

    def __init__(self) -> None:
        """Holds no lease."""
        self.replica_id: str | None = None
        self.is_draining = False
        self._end = 0.0
        self._known_until = 0.0

    @property
    def keeper(self) -> str | None:
        """Who aggregates a round that is closed here: a replica, none yet (empty), or the only server (None)."""
        return "" if self.is_draining and self.replica_id is not None else self.replica_id

    @property
    def is_held(self) -> bool:
        """Whether there is a lease that has not ended, however long the process was paused."""
        return self.replica_id is not None and elapsed() < self._end

    @property
    def is_fresh(self) -> bool:
        """Whether this process knows of all changes of credentials, but for the last seconds."""
        return self.replica_id is None or elapsed() < self._known_until

    def check(self) -> None:
        """Checks that this process may use its database: it needs no lease, or has one.

        Raises:
            StoreUnavailable: The lease could not be renewed.
        """
        if self.replica_id is not None and elapsed() >= self._end:
            raise StoreUnavailable(LOST)

    def take(self, replica_id: str, begun: float) -> None:
        """Records that a lease was taken or renewed by a statement that was begun at a time, by `elapsed`."""
        self._end = begun + LEASE_SECONDS
        self.replica_id = replica_id

    def know(self, begun: float) -> None:
        """Records that changes of credentials were asked for at a time, by `elapsed`."""
        self._known_until = begun + FRESH_SECONDS

    def leave(self) -> None:
        """Ends the lease."""
        self.replica_id = None
        self.is_draining = False


class DatabaseClock:
    """The time by the clock of a PostgreSQL database, which its replicas share: their own may be wrong.

    Any thread may read it.
    """

    def __init__(self) -> None:
        """Shows the time of the machine, until it learns another."""
        self._offset: float | None = None

    def now(self) -> datetime:
        """Returns the present time."""
        return datetime.now(UTC) if self._offset is None else datetime.fromtimestamp(self._offset + elapsed(), UTC)

    def ahead(self) -> float:
        """Returns how many seconds the clock of the machine is ahead; a negative number if it is behind."""
        return (datetime.now(UTC) - self.now()).total_seconds()

    def learn(self, begun: float, ended: float, seconds: float) -> None:
        """Sets the clock by an answer of the database, unless it agrees with it.

        Args:
            begun: When the database was asked, by `elapsed`.
            ended: When it had answered.
            seconds: The time of the database in between, since 1970.
        """
        # Without a need it is not set, so that it goes evenly.
        earliest, latest = seconds - ended, seconds - begun
        if self._offset is None or not earliest <= self._offset <= latest:
            self._offset = (earliest + latest) / 2


lease = Lease()
"""The lease of this process, which has one database open at a time."""
