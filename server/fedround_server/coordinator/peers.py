"""The servers on the same database: with PostgreSQL there may be several, the replicas."""

from datetime import datetime

from fedround_server.domain.replica import Replica


class Peers:
    """The replicas as of the last look at the database; none on SQLite.

    Attributes:
        replicas: Those that are alive, also this one, the oldest first.
    """

    def __init__(self) -> None:
        """Knows of no replica."""
        self.replicas: tuple[Replica, ...] = ()
        self._own_id: str | None = None

    def set(self, replicas: tuple[Replica, ...], own_id: str | None) -> None:
        """Records which replicas are alive, and which of them this server is."""
        self.replicas, self._own_id = replicas, own_id

    def own_name(self) -> str:
        """Returns the name of this server among several; empty if there is no other."""
        own = next((one.name for one in self.replicas if one.replica_id == self._own_id), "")
        return own if len(self.replicas) > 1 else ""

    @property
    def others(self) -> list[Replica]:
        """The other replicas."""
        return [one for one in self.replicas if one.replica_id != self._own_id]

    @property
    def is_first(self) -> bool:
        """Whether this server does what one of all should do, and several may."""
        return not self.replicas or self.replicas[0].replica_id == self._own_id

    def is_alive(self, replica_id: str | None, now: datetime) -> bool:
        """Returns whether another replica is probably alive; only the database knows it for sure."""
        return any(one.replica_id == replica_id and one.expire_time > now for one in self.others)
