"""Transactions by which the replicas of a PostgreSQL database share what each knows."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from fedround_server.domain.replica import UserPresence
from fedround_server.domain.rounds.round import RoundState
from fedround_server.failpoints import reached
from fedround_server.store.db.lease import lease
from fedround_server.store.db.run import Verbs, snapshot, verb
from fedround_server.store.queries.replica import (
    NewEvents,
    from_presence,
    is_alive,
    new_events,
    new_participants,
    read_presence,
)
from fedround_server.store.queries.round import find_round
from fedround_server.store.queries.training import lock_training
from fedround_server.store.tables.base import database_proxy
from fedround_server.store.tables.replica_schema import ReplicaRow
from fedround_server.store.tables.schema import RoundRow

# One statement for any number of users.
PUBLISH = """
INSERT INTO presence (replica_id, user_id, version, listening, seen_time, details)
SELECT %s, given.user_id, %s + given.position, given.listening, given.seen_time, given.details
FROM unnest(%s::text[], %s::bool[], %s::bigint[], %s::text[])
    WITH ORDINALITY AS given (user_id, listening, seen_time, details, position)
ON CONFLICT (replica_id, user_id) DO UPDATE SET version = excluded.version, listening = excluded.listening,
    seen_time = excluded.seen_time, details = excluded.details
"""


class ReplicaVerbs(Verbs):
    """Transactions of replicas."""

    @verb
    def take_over(self, training_id: str, number: int) -> bool:
        """Makes this replica the keeper of a closed round, unless another one that is alive is.

        The epoch of the round fences what the earlier keeper has begun, even if it is still at work.

        Returns:
            Whether this replica is the keeper now.
        """
        training = lock_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if row is None or row.state != RoundState.AGGREGATING.value or row.keeper == lease.replica_id:
            return row is not None and row.state == RoundState.AGGREGATING.value
        if row.keeper and is_alive(row.keeper):
            return False
        RoundRow.update(keeper=lease.replica_id, epoch=RoundRow.epoch + 1).where(
            RoundRow.training_id == training_id, RoundRow.number == number
        ).execute()
        reached("round.taken_over")
        return True

    @verb
    def give_up(self) -> None:
        """Leaves all closed rounds that this replica keeps to the others."""
        kept = (RoundRow.state == RoundState.AGGREGATING.value) & (RoundRow.keeper == lease.replica_id)
        RoundRow.update(keeper="").where(kept).execute()

    @verb
    def publish_presence(self, replica_id: str, version: int, users: Sequence[UserPresence]) -> None:
        """Tells the other replicas of users that are, or were, connected to this one.

        Args:
            replica_id: This replica.
            version: The version of the last row that it has written; those of the new ones follow it.
            users: The users.
        """
        columns = [list(values) for values in zip(*map(from_presence, users), strict=True)]
        database_proxy.execute_sql(PUBLISH, (replica_id, version, *columns))
        last = version + len(users)
        ReplicaRow.update(presence_version=last).where(ReplicaRow.replica_id == replica_id).execute()

    @verb
    def presence(self, replica_id: str, after: int) -> list[tuple[int, UserPresence]]:
        """Returns a page of what a replica tells of users, behind a version, with the version of each."""
        return read_presence(replica_id, after)

    @snapshot
    def news(self, logs: Mapping[str, int], since: datetime) -> tuple[list[NewEvents], set[tuple[str, datetime]]]:
        """Returns what notifications tell of, for the case that one was lost.

        Args:
            logs: By training, the last sequence that is known.
            since: A time.

        Returns:
            What is new in the logs, and the users who were registered in trainings after the time, and when: the
            latest ones, if they are `MAX_REGISTERED` or more.
        """
        return new_events(logs), new_participants(since)
