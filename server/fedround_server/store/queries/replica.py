"""Reads of replicas: which are alive, who is connected to them, and what they have changed; on PostgreSQL alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from peewee import SQL, Expression, fn

from fedround_server.domain.replica import UserPresence
from fedround_server.store.db.lease import NOW, lease
from fedround_server.store.tables.base import InstantField, database_proxy
from fedround_server.store.tables.replica_schema import PresenceRow, ReplicaRow
from fedround_server.store.tables.schema import ParticipantRow, RoundRow, TrainingRow

PAGE = 2000
"""How many rows of presence are read in one transaction."""
MAX_REGISTERED = 1000
"""How many registrations, and how many new trainings, are told of at most."""
# A lateral subquery, so that each log is searched by its index.
NEW_EVENTS = """
SELECT log.training_id, last.sequence, last.shared
FROM unnest(%s::text[], %s::bigint[]) AS log (training_id, sequence) CROSS JOIN LATERAL (
    SELECT max(event.sequence) AS sequence, max(event.sequence) FILTER (WHERE event.audience <> 'actor') AS shared
    FROM event WHERE event.training_id = log.training_id AND event.sequence > log.sequence
) AS last WHERE last.sequence IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class NewEvents:
    """The end of a log behind a sequence.

    Attributes:
        training_id: The training.
        last: The last sequence.
        shared: The last one of an event that is not for the actor alone; None if there is none.
    """

    training_id: str
    last: int
    shared: int | None


def is_alive(replica_id: str) -> bool:
    """Returns whether a replica has a lease, by the clock of the database."""
    return bool(ReplicaRow.select().where(_is_alive(replica_id)).exists())


def is_kept_here() -> Expression:
    """Returns the condition that a closed round is this process's to aggregate, whose lease has not ended."""
    replica_id = lease.replica_id
    if replica_id is None:
        return RoundRow.keeper.is_null()
    alive = ReplicaRow.select(ReplicaRow.replica_id).where(_is_alive(replica_id))
    return (RoundRow.keeper == replica_id) & fn.EXISTS(alive)


def keeps(row: RoundRow) -> bool:
    """Returns what `is_kept_here` selects, of a row that was read."""
    return row.keeper == lease.replica_id and (row.keeper is None or is_alive(row.keeper))


def read_presence(replica_id: str, after: int) -> list[tuple[int, UserPresence]]:
    """Returns a page of what a replica tells of users, behind a version, with the version of each."""
    rows = (
        PresenceRow.select()
        .where(PresenceRow.replica_id == replica_id, PresenceRow.version > after)
        .order_by(PresenceRow.version)
        .limit(PAGE)
    )
    return [(row.version, _to_presence(row)) for row in rows]


def new_events(logs: Mapping[str, int]) -> list[NewEvents]:
    """Returns what is new in logs, given by training with the last sequence that is known."""
    found = database_proxy.execute_sql(NEW_EVENTS, (list(logs), list(logs.values()))).fetchall()
    return [NewEvents(*row) for row in found]


def new_participants(since: datetime) -> set[tuple[str, datetime]]:
    """Returns the users who were registered in trainings after a time, and the actors of new ones, each with when.

    Of more than `MAX_REGISTERED`, they are the latest.
    """
    part, training = ParticipantRow, TrainingRow
    registered = part.select(part.user_id, part.register_time).where(part.register_time > since).distinct()
    registered = registered.order_by(part.register_time.desc(), part.user_id).limit(MAX_REGISTERED)
    created = training.select(training.actor_id, training.create_time).where(training.create_time > since).distinct()
    created = created.order_by(training.create_time.desc(), training.actor_id).limit(MAX_REGISTERED)
    return {(row.user_id, row.register_time) for row in registered} | {
        (row.actor_id, row.create_time) for row in created
    }


def _is_alive(replica_id: str) -> Expression:
    return (ReplicaRow.replica_id == replica_id) & (ReplicaRow.expire_time > SQL(NOW))


def _to_presence(row: PresenceRow) -> UserPresence:
    sessions = tuple((one[0], one[1], one[2]) for one in row.details.get("sessions", ()))
    attributes = tuple(sorted(row.details.get("attributes", {}).items()))
    expected = InstantField().python_value(row.details.get("expected_until"))
    uploads = tuple((one[0], one[1], one[2]) for one in row.details.get("uploads", ()))
    return UserPresence(row.user_id, row.listening, row.seen_time, sessions, attributes, expected, uploads)


def from_presence(presence: UserPresence) -> tuple[str, bool, int | None, str]:
    """Returns the values of the columns of a row of presence: user, whether it listens, when it was seen, details."""
    details: dict[str, object] = {}
    if presence.sessions:
        details["sessions"] = presence.sessions
    if presence.attributes:
        details["attributes"] = dict(presence.attributes)
    if presence.expected_until is not None:
        details["expected_until"] = InstantField().db_value(presence.expected_until)
    if presence.uploads:
        details["uploads"] = presence.uploads
    text = PresenceRow.details.db_value(details)
    return presence.user_id, presence.listening, InstantField().db_value(presence.seen_time), str(text)
