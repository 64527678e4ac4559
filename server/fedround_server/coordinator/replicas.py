"""What the replicas of one database tell each other: wake-ups, changes of credentials, and who is connected where."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from fedround_server.coordinator.access import Access
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.feed import Feeds
from fedround_server.coordinator.outages import level_of
from fedround_server.coordinator.round import Rounds
from fedround_server.coordinator.uploads.progress import UpdateProgress
from fedround_server.domain.errors import Unavailable
from fedround_server.domain.replica import UserPresence
from fedround_server.failpoints import reached
from fedround_server.store.db.replica_session import LOOK, Look, ReplicaSession
from fedround_server.store.queries.replica import MAX_REGISTERED
from fedround_server.wakeups import NEW_TRAINING, for_actor, is_for_actor

log = logging.getLogger(__name__)
TURN_SECONDS = 1.0
BATCH = 1000
"""How many users are told of in one transaction; the store does other work between two."""
UPLOADS_SECONDS = 5.0
"""How often others are told how much of an update has arrived."""
MIN_UPLOAD_BYTES = 1 << 20
"""How much of it has to have arrived: smaller ones are short, and there may be many at once."""
SEEN_INTERVAL = timedelta(seconds=10)
"""How often others are told of a user that makes short calls and has no subscription."""
OVERLAP = timedelta(seconds=10)
"""How long a transaction that registers participants may take at most, for others to learn of it without a wake-up."""


class Replicas:
    """Follows the other replicas, and tells them of this one. On SQLite, and without others, there is nothing to do."""

    def __init__(
        self, context: Context, access: Access, feeds: Feeds, rounds: Rounds, progress: UpdateProgress
    ) -> None:
        """Has not joined any."""
        self._context = context
        self._store = context.store.replicas
        self._access = access
        self._feeds = feeds
        self._rounds = rounds
        self._progress = progress
        self._session: ReplicaSession | None = None
        self._loop: asyncio.AbstractEventLoop
        self._looked = asyncio.Event()
        self._replica_id: str | None = None
        self._others: set[str] = set()
        # Whose credentials others have changed; None for those of all users.
        self._changed: set[str] | None = set()
        # What was told of users, and the version of the last row of it.
        self._told: dict[str, UserPresence] = {}
        self._trimmed_at = context.clock.now()
        self._version = 0
        # How much of updates had arrived, at which time.
        self._uploads: dict[str, tuple[tuple[str, int, int], ...]] = {}
        self._uploads_at = 0.0
        self._read: dict[str, int] = {}
        # Up to which sequence the actors of trainings were woken; who was registered lately.
        self._known: dict[str, int] = {}
        self._registered: set[tuple[str, datetime]] = set()
        self._is_cut_off = False

    @property
    def has_others(self) -> bool:
        """Whether other servers use the database."""
        return bool(self._context.peers.others)

    def join(self, name: str, version: str) -> None:
        """Takes a lease as a replica of the database, if several may use it; starts the background work.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        self._loop = asyncio.get_running_loop()
        self._session = self._context.store.join(name, version, self)
        if self._session is not None:
            self._context.hub.relay(partial(self._notify, self._session))
            self._context.background.create_task(self._run(self._session), name="follow replicas")

    def _notify(self, session: ReplicaSession, topics: Collection[str]) -> None:
        session.notify(topics, is_urgent=not all(map(is_for_actor, topics)))

    async def start_draining(self) -> None:
        """Leaves the closed rounds to the other replicas, if there are any."""
        if self._session is None or not self._context.peers.others:
            return
        self._context.store.start_draining()
        try:
            await self._store.give_up()
        except Unavailable as error:
            # They take the rounds when this replica has ended.
            log.warning("leaving closed rounds to other replicas: %s", error)
        reached("replica.given_up")
        self._session.notify([LOOK])

    @property
    def is_cut_off(self) -> bool:
        """Whether this replica has lost its lease, so that calls are better made to another one, if there were any."""
        return not self._context.store.has_lease and bool(self._context.peers.others)

    def looked(self, look: Look) -> None:
        """Receives what a look at the database has found, in the session's thread."""
        self._call(partial(self._take_look, look))

    def woken(self, topics: frozenset[str] | None) -> None:
        """Receives the topics of a wake-up, None for all, in the session's thread."""
        hub = self._context.hub
        self._call(hub.notify_all if topics is None else partial(hub.wake, topics))

    def _call(self, function: Callable[[], None]) -> None:
        # When the loop is closed, no caller waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def _take_look(self, look: Look) -> None:
        replica_id = self._context.store.replica_id
        if replica_id != self._replica_id:
            # Nothing was told under the new id.
            self._replica_id = replica_id
            self._told.clear()
            self._version = 0
            self._context.presence.return_changes(None)
        self._context.peers.set(look.replicas, replica_id)
        if look.changed_users is None or look.changed_users:
            # At once: what follows may wait for the database.
            self._access.forget_callers()
        if look.changed_users is None:
            self._changed = None
        elif self._changed is not None:
            self._changed |= look.changed_users
        self._looked.set()

    async def _run(self, session: ReplicaSession) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TURN_SECONDS):
                    await self._looked.wait()
            if not session.is_running:
                raise RuntimeError(session.problem or "the session of the replica has ended: the log says why")
            self._end_if_cut_off()
            if not self._looked.is_set():
                continue
            self._looked.clear()
            try:
                await self._follow()
            except Unavailable as error:
                log.log(level_of(error), "following the other replicas: %s", error)

    def _end_if_cut_off(self) -> None:
        """Ends the subscriptions once this replica has lost its lease, if they can go on at another one."""
        was_cut_off, self._is_cut_off = self._is_cut_off, self.is_cut_off
        if self._is_cut_off and not was_cut_off:
            log.warning("the lease of this replica has ended: its subscribers go on at another one")
            # Each asks the store, which refuses.
            self._context.hub.notify_all()

    async def _follow(self) -> None:
        changed, self._changed = self._changed, set()
        if changed is None or changed:
            await self._access.learn(None if changed is None else changed - {""})
        before, self._others = self._others, {one.replica_id for one in self._context.peers.others}
        self._context.presence.elsewhere.keep(self._others, self._context.clock.now())
        self._read = {replica_id: read for replica_id, read in self._read.items() if replica_id in self._others}
        if before - self._others:
            # What it has left is taken up at once.
            await self._rounds.reconcile()
        if not self._others:
            self._context.presence.return_changes(None)
            self._told.clear()
            return
        await self._tell()
        await self._learn()
        await self._catch_up()

    async def _tell(self) -> None:
        """Tells the other replicas which users are connected to this one, as far as that is news."""
        replica_id = self._replica_id
        changed = self._context.presence.take_changes()
        users = self._context.presence.users_here() if changed is None else changed
        users |= self._sample_uploads()
        if changed is None:
            users |= self._uploads.keys()
        news = list(self._news(users))
        try:
            for start in range(0, len(news), BATCH):
                batch = news[start : start + BATCH]
                # No version is used twice, also when it is not known whether it was written.
                version, self._version = self._version, self._version + len(batch)
                await self._store.publish_presence(str(replica_id), version, batch)
                if replica_id != self._replica_id:
                    # All is to be told again, under the new id.
                    return
                self._told.update((one.user_id, one) for one in batch)
            self._trim_told()
        except Unavailable:
            self._context.presence.return_changes(changed)
            raise
        if news:
            reached("replica.told")

    def _trim_told(self) -> None:
        """Drops what was told of users that are gone, from time to time: what is told of them next is news anyway."""
        now = self._context.clock.now()
        if now - self._trimmed_at < SEEN_INTERVAL:
            return
        self._trimmed_at = now
        self._told = {user_id: one for user_id, one in self._told.items() if _is_needed(one, now)}

    def _sample_uploads(self) -> set[str]:
        """Looks how much of updates has arrived, if that is due; returns the users of whom more has."""
        if (now := time.monotonic()) < self._uploads_at + UPLOADS_SECONDS:
            return set()
        before, self._uploads, self._uploads_at = self._uploads, self._progress.sample(MIN_UPLOAD_BYTES), now
        return {user_id for user_id in before | self._uploads if before.get(user_id) != self._uploads.get(user_id)}

    def _news(self, user_ids: Iterable[str]) -> Iterable[UserPresence]:
        presence, sessions = self._context.presence, self._context.sessions
        now = self._context.clock.now()
        for user_id in user_ids:
            told, expected = self._told.get(user_id), presence.expected_until(user_id)
            uploads = self._uploads.get(user_id, ())
            if presence.is_connected_here(user_id):
                attributes = tuple(sorted(presence.attributes_here(user_id).items()))
                is_listening = presence.is_listening_here(user_id)
                one = UserPresence(user_id, is_listening, None, sessions.of(user_id), attributes, expected, uploads)
            else:
                # Users that were removed have no time.
                last_seen = presence.last_seen_here(user_id) or now
                one = UserPresence(user_id, False, last_seen, expected_until=expected, uploads=uploads)
                seen = told.seen_time if told is not None and replace(one, seen_time=told.seen_time) == told else None
                if seen is not None and now - seen < SEEN_INTERVAL:
                    continue
            if one != told:
                yield one

    async def _learn(self) -> None:
        """Reads what the other replicas tell of users."""
        for other in self._context.peers.others:
            read = self._read.get(other.replica_id, 0)
            while read < other.presence_version:
                page = await self._store.presence(other.replica_id, read)
                self._context.presence.elsewhere.update(other.replica_id, [one for _, one in page])
                if not page:
                    break
                read = self._read[other.replica_id] = page[-1][0]

    async def _catch_up(self) -> None:
        """Wakes those whom a lost notification would have woken."""
        now = self._context.clock.now()
        # A log that was not read yet will be, by the subscription that has just begun.
        read = {training_id: sequence for training_id, sequence in self._feeds.positions().items() if sequence}
        self._known = {training_id: max(self._known.get(training_id, 0), read[training_id]) for training_id in read}
        events, registered = await self._store.news(self._known, now - OVERLAP)
        for new in events:
            self._known[new.training_id] = new.last
            self._context.hub.wake([for_actor(new.training_id)])
            if new.shared is not None and new.shared > self._feeds.position(new.training_id):
                self._context.hub.wake([new.training_id])
        fresh = registered - self._registered
        was_cut, is_cut = (len(some) >= MAX_REGISTERED for some in (self._registered, registered))
        if (is_cut and fresh) or (was_cut and not is_cut):
            # There are, or were, more.
            self._context.hub.notify_all()
        elif fresh:
            self._context.hub.wake({NEW_TRAINING, *(user_id for user_id, _ in fresh)})
        self._registered = registered


def _is_needed(told: UserPresence, now: datetime) -> bool:
    """Returns whether what was told of a user decides what is told of it next."""
    return (
        told.is_listening(now) or told.seen_time is None or now - told.seen_time < SEEN_INTERVAL or bool(told.uploads)
    )
