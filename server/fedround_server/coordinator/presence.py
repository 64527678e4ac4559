"""Presence: which users listen, by a subscription or by check-ins, and when each user was last seen."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime

from fedround_server.coordinator.elsewhere import Elsewhere


class Presence:
    """The presence of users since the start of the server, here and at other replicas.

    Attributes:
        elsewhere: Who is connected to other replicas.
    """

    def __init__(self) -> None:
        self.elsewhere = Elsewhere()
        # Those whose presence has changed since other replicas were told of it; None while there are no others.
        self._changed: set[str] | None = None
        self._seen: dict[str, datetime] = {}
        self._news: set[str] = set()
        self._listening: Counter[str] = Counter()
        # Until when users that have checked in are expected back.
        self._expected: dict[str, datetime] = {}
        self._calls: Counter[str] = Counter()
        self._attributes: dict[str, Mapping[str, str]] = {}

    def see(self, user_id: str, now: datetime) -> None:
        """Records that a user was seen."""
        self._seen[user_id] = now
        self.elsewhere.see(user_id)
        self._news.add(user_id)
        self._mark(user_id)

    def listening(self, user_id: str, now: Callable[[], datetime]) -> AbstractContextManager[None]:
        """Marks a user as listening within the block; keepalive ends the subscription of a user that is gone."""
        return _Listening(self, user_id, now)

    def begin(self, user_id: str, now: datetime) -> None:
        """Records that a user has opened a subscription."""
        self._add(self._listening, user_id, now)

    def end(self, user_id: str, now: datetime) -> None:
        """Records that a user has closed a subscription."""
        self._remove(self._listening, user_id, now)

    def expect(self, user_id: str, until: datetime) -> None:
        """Records that a user has checked in, and counts as listening until it checks in again, or until that time."""
        self._expected[user_id] = until
        self._mark(user_id)

    def has_checked_in(self, user_id: str) -> bool:
        """Returns whether a user has checked in since the start of the server, and was not given up long ago."""
        return user_id in self._expected

    def num_expected(self) -> int:
        """Returns how many users check in."""
        return len(self._expected)

    def begin_call(self, user_id: str, now: datetime) -> None:
        """Records that a call of a user has begun."""
        self._add(self._calls, user_id, now)

    def end_call(self, user_id: str, now: datetime) -> None:
        """Records that a call of a user has ended."""
        self._remove(self._calls, user_id, now)

    def is_connected(self, user_id: str, now: datetime) -> bool:
        """Returns whether a call of a user is in progress, or the user is listening."""
        return user_id in self._calls or self.is_listening(user_id, now) or self.elsewhere.is_connected(user_id, now)

    def is_connected_here(self, user_id: str) -> bool:
        """Returns whether a call of a user to this server is in progress."""
        return user_id in self._calls or user_id in self._listening

    def is_listening(self, user_id: str, now: datetime) -> bool:
        """Returns whether a user has a subscription open, or is expected to check in."""
        until = self.expected_until(user_id)
        return (
            user_id in self._listening
            or (until is not None and now < until)
            or self.elsewhere.is_listening(user_id, now)
        )

    def is_listening_here(self, user_id: str) -> bool:
        """Returns whether a user has a subscription to this server open."""
        return user_id in self._listening

    def expected_until(self, user_id: str) -> datetime | None:
        """Returns until when a user that has checked in at this server is expected back."""
        return self._expected.get(user_id)

    def listeners(self, now: datetime) -> frozenset[str]:
        """Returns all users that are listening."""
        expected = (user_id for user_id, until in self._expected.items() if now < until)
        return frozenset(self._listening).union(expected, self.elsewhere.listeners(now))

    def describe(self, user_id: str, attributes: Mapping[str, str]) -> None:
        """Keeps what a participant says of itself, in place of what it said before; nothing else depends on it."""
        if attributes:
            self._attributes[user_id] = attributes

    def attributes(self, user_id: str) -> Mapping[str, str]:
        """Returns what a participant said of itself since the start of the server."""
        return self._attributes.get(user_id) or self.elsewhere.attributes(user_id)

    def attributes_here(self, user_id: str) -> Mapping[str, str]:
        """Returns what a participant said of itself to this server."""
        return self._attributes.get(user_id, {})

    def last_seen(self, user_id: str, now: datetime) -> datetime | None:
        """Returns when a user was last seen since the start of the server; that is now while it listens."""
        if user_id in self._listening:
            return now
        here, elsewhere = self._seen.get(user_id), self.elsewhere.last_seen(user_id, now)
        return max((time for time in (here, elsewhere) if time is not None), default=None)

    def last_seen_here(self, user_id: str) -> datetime | None:
        """Returns when a call of a user to this server has begun or ended last."""
        return self._seen.get(user_id)

    def forget(self, user_id: str) -> None:
        """Forgets a user."""
        self._seen.pop(user_id, None)
        self._attributes.pop(user_id, None)
        self._expected.pop(user_id, None)
        self._news.discard(user_id)
        self.elsewhere.forget(user_id)

    def take_changes(self) -> set[str] | None:
        """Returns the users whose presence here has changed since the last call; None for all of them."""
        changed, self._changed = self._changed, set()
        return changed

    def return_changes(self, changed: Iterable[str] | None) -> None:
        """Makes the next call of `take_changes` return these users, too; None for all."""
        self._changed = None if changed is None or self._changed is None else self._changed.union(changed)

    def users_here(self) -> set[str]:
        """Returns the users with a call to this server in progress, and those that check in at it."""
        return self._calls.keys() | self._listening.keys() | self._expected.keys()

    def take_news(self, now: datetime) -> dict[str, datetime]:
        """Returns when users were last seen, for those seen since the last call; gives up those that did not return."""
        self._expected = {user_id: until for user_id, until in self._expected.items() if now < until}
        for user_id in self._listening:
            self.see(user_id, now)
        news = {user_id: self._seen[user_id] for user_id in self._news}
        self._news.clear()
        return news

    def give_back(self, news: Iterable[str]) -> None:
        """Makes the next call of `take_news` return these users again, since they could not be stored."""
        self._news |= set(news) & self._seen.keys()

    def _add(self, counts: Counter[str], user_id: str, now: datetime) -> None:
        counts[user_id] += 1
        self.see(user_id, now)

    def _remove(self, counts: Counter[str], user_id: str, now: datetime) -> None:
        counts[user_id] -= 1
        if not counts[user_id]:
            del counts[user_id]
        # A user that was removed in the meantime is not recorded again.
        if user_id in self._seen:
            self.see(user_id, now)
        self._mark(user_id)

    def _mark(self, user_id: str) -> None:
        """Records that other replicas have to be told of a user."""
        if self._changed is not None:
            self._changed.add(user_id)


class _Listening:
    """The context of one subscription. A generator would take five times as much memory, and there are thousands."""

    __slots__ = ("_now", "_presence", "_user_id")

    def __init__(self, presence: Presence, user_id: str, now: Callable[[], datetime]) -> None:
        self._presence = presence
        self._user_id = user_id
        self._now = now

    def __enter__(self) -> None:
        self._presence.begin(self._user_id, self._now())

    def __exit__(self, *_: object) -> None:
        self._presence.end(self._user_id, self._now())
