"""Who is connected to other replicas, as these told last."""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

from fedround_server.domain.replica import UserPresence

KEPT = timedelta(days=366)
"""How long it is known when a user was seen at a replica that has ended: `absent_after` is at most 365 days."""


class Elsewhere:
    """The users of the other replicas; without replicas there are none, and every question is answered at once."""

    def __init__(self) -> None:
        """Knows of no user."""
        self._users: dict[str, dict[str, UserPresence]] = {}
        # Of replicas that have ended: when users were last seen there, if they were seen nowhere since; and
        # until when they are expected to check in.
        self._seen: dict[str, datetime] = {}
        self._expected: dict[str, datetime] = {}

    def is_connected(self, user_id: str, now: datetime) -> bool:
        """Returns whether a call of a user is in progress, or the user is listening."""
        return self.is_listening(user_id, now) or any(one.seen_time is None for one in self._of(user_id))

    def is_listening(self, user_id: str, now: datetime) -> bool:
        """Returns whether a user has a subscription open, or is expected to check in."""
        until = self._expected.get(user_id)
        return (until is not None and now < until) or any(one.is_listening(now) for one in self._of(user_id))

    def listeners(self, now: datetime) -> frozenset[str]:
        """Returns all users that are listening."""
        told = (one for users in self._users.values() for one in users.values())
        expected = (user_id for user_id, until in self._expected.items() if now < until)
        return frozenset(one.user_id for one in told if one.is_listening(now)).union(expected)

    def last_seen(self, user_id: str, now: datetime) -> datetime | None:
        """Returns when a user was last seen; that is now while it is connected."""
        times = [now if one.seen_time is None else one.seen_time for one in self._of(user_id)]
        if user_id in self._seen:
            times.append(self._seen[user_id])
        return max(times, default=None)

    def attributes(self, user_id: str) -> Mapping[str, str]:
        """Returns what a user says of itself."""
        return next((dict(one.attributes) for one in self._of(user_id) if one.attributes), {})

    def sessions(self, user_id: str) -> Iterable[tuple[str, str | None, str]]:
        """Returns the programs that take part as a user: id of the session, training (None for all), and since when."""
        return [session for one in self._of(user_id) if one.seen_time is None for session in one.sessions]

    def uploaded_bytes(self, user_id: str, training_id: str, number: int) -> int:
        """Returns how many bytes of a participant's update for a round have arrived at one of the replicas."""
        uploads = (upload for one in self._of(user_id) for upload in one.uploads)
        return max((size for *update, size in uploads if update == [training_id, number]), default=0)

    def update(self, replica_id: str, users: Iterable[UserPresence]) -> None:
        """Records what a replica tells of users."""
        told = self._users.setdefault(replica_id, {})
        for one in users:
            told[one.user_id] = one
            if one.seen_time is None or one.seen_time >= self._seen.get(one.user_id, one.seen_time):
                self.see(one.user_id)

    def see(self, user_id: str) -> None:
        """Records that a user was seen later than at any replica that has ended."""
        self._seen.pop(user_id, None)

    def forget(self, user_id: str) -> None:
        """Forgets a user that was removed."""
        self._seen.pop(user_id, None)
        self._expected.pop(user_id, None)

    def keep(self, replica_ids: Collection[str], now: datetime) -> None:
        """Keeps what these replicas told; the users of all others were seen until now, and may still check in."""
        self._expected = {user_id: until for user_id, until in self._expected.items() if now < until}
        ended = self._users.keys() - set(replica_ids)
        if ended:
            self._seen = {user_id: seen for user_id, seen in self._seen.items() if now - seen < KEPT}
        for replica_id in ended:
            for one in self._users.pop(replica_id).values():
                seen = now if one.seen_time is None else one.seen_time
                self._seen[one.user_id] = max(seen, self._seen.get(one.user_id, seen))
                if one.expected_until is not None:
                    self._expected[one.user_id] = one.expected_until

    def _of(self, user_id: str) -> Iterable[UserPresence]:
        if not self._users:
            return ()
        return [users[user_id] for users in self._users.values() if user_id in users]
