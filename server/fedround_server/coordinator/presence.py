"""Who is there: users that listen, and when the others were seen last."""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime


class Presence:
    """What is known of users since the start of the server."""

    def __init__(self) -> None:
        """Begins without having seen anybody."""
        self._seen: dict[str, datetime] = {}
        self._news: set[str] = set()
        self._listening: Counter[str] = Counter()

    def see(self, user_id: str, now: datetime) -> None:
        """Notes that a user was heard of."""
        self._seen[user_id] = now
        self._news.add(user_id)

    def listening(self, user_id: str, now: Callable[[], datetime]) -> AbstractContextManager[None]:
        """Has a user there for the time of the block: keepalive ends the subscription of one that is not."""
        return _Listening(self, user_id, now)

    def begin(self, user_id: str, now: datetime) -> None:
        """Notes that a user listens."""
        self._listening[user_id] += 1
        self.see(user_id, now)

    def end(self, user_id: str, now: datetime) -> None:
        """Notes that a user listens once less."""
        self._listening[user_id] -= 1
        if not self._listening[user_id]:
            del self._listening[user_id]
        # Else it was forgotten meanwhile.
        if user_id in self._seen:
            self.see(user_id, now)

    def is_listening(self, user_id: str) -> bool:
        """Tells whether a user has a subscription open."""
        return user_id in self._listening

    def last_seen(self, user_id: str, now: datetime) -> datetime | None:
        """Returns when a user was there last, since the start of the server: now if it listens."""
        return now if user_id in self._listening else self._seen.get(user_id)

    def forget(self, user_id: str) -> None:
        """Forgets a user."""
        self._seen.pop(user_id, None)
        self._news.discard(user_id)

    def take_news(self, now: datetime) -> dict[str, datetime]:
        """Returns who was there since the last time that this was asked, and when last."""
        for user_id in self._listening:
            self.see(user_id, now)
        news = {user_id: self._seen[user_id] for user_id in self._news}
        self._news.clear()
        return news

    def give_back(self, news: Iterable[str]) -> None:
        """Has news told again, since nobody could keep it."""
        self._news |= set(news) & self._seen.keys()


class _Listening:
    """The time of one subscription; there are thousands, and a generator would take five times as much memory."""

    __slots__ = ("_now", "_presence", "_user_id")

    def __init__(self, presence: Presence, user_id: str, now: Callable[[], datetime]) -> None:
        self._presence = presence
        self._user_id = user_id
        self._now = now

    def __enter__(self) -> None:
        self._presence.begin(self._user_id, self._now())

    def __exit__(self, *_: object) -> None:
        self._presence.end(self._user_id, self._now())
