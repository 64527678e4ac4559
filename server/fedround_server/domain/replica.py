"""Replicas: the servers that serve the same trainings, on one PostgreSQL database."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Replica:
    """A server that has a lease on being a replica.

    Attributes:
        replica_id: Its id, which is a new one after it has lost its lease.
        name: How operators know it.
        version: Its version of fedround.
        start_time: When it took its first lease under this id.
        expire_time: When its lease ends, unless it is renewed; by the database's clock, as all times of replicas.
        presence_version: The version of the last row in which it told who is connected to it.
    """

    replica_id: str
    name: str
    version: str
    start_time: datetime
    expire_time: datetime
    presence_version: int = 0


@dataclass(frozen=True, slots=True)
class UserPresence:
    """What a replica tells the others of a user.

    Attributes:
        user_id: The user.
        listening: Whether it has a subscription open there.
        seen_time: When it was last seen there; None while it is connected.
        sessions: The programs that take part as the user: id of the session, training (None for all), and since when.
        attributes: What the user says of itself.
        expected_until: Until when it is expected to check in again; None if it does not check in.
        uploads: How much of its updates has arrived there: training, number of the round, bytes.
    """

    user_id: str
    listening: bool
    seen_time: datetime | None
    sessions: tuple[tuple[str, str | None, str], ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    expected_until: datetime | None = None
    uploads: tuple[tuple[str, int, int], ...] = ()

    def is_listening(self, now: datetime) -> bool:
        """Returns whether the user has a subscription open, or is expected to check in."""
        return self.listening or (self.expected_until is not None and now < self.expected_until)
