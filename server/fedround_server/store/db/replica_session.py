"""The session in which a server is a replica: its lease, the notifications of others, and changes of credentials.

It has a connection and a thread of its own: a lease must not end because many verbs wait for the store's threads.
"""

import logging
import os
import select
import threading
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.replica import Replica
from fedround_server.failpoints import reached
from fedround_server.store.db.connection import KEEPALIVES, NETWORK, in_one_line, postgres_settings
from fedround_server.store.db.lease import LEASE_SECONDS, NOW, RENEWAL_SECONDS, DatabaseClock, Lease, elapsed
from fedround_server.store.tables.base import InstantField

log = logging.getLogger(__name__)
CHANNEL = "fedround"
LOOK = "look"
"""The topic by which replicas have each other look at the database at once."""
LOOK_SECONDS = 1.0
SEND_SECONDS = 0.01
"""The shortest time between two notifications."""
PATIENT_SECONDS = 0.25
"""The shortest time before one that is not urgent: each accepted update has one, which all replicas receive."""
PAYLOAD_BYTES = 7900
"""PostgreSQL takes less than 8000."""
MAX_PAYLOADS = 64
"""How many payloads one notification has at most; beyond it wakes all."""
EVERYTHING = "*"
STATEMENT_SECONDS = 10
"""How long PostgreSQL may take for a statement of the session; after that the connection is given up."""
SETTINGS = {"application_name": "fedround replica", **NETWORK}
"""Of the connection, unless the URL has others."""
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
KEPT_CHANGES = 1000
"""How many changes of credentials are kept: a replica that has missed more looks all callers up."""
LEASE = int(LEASE_SECONDS * 1_000_000)
DEAD = 60_000_000
"""Microseconds after the end of its lease when the row of a replica is removed."""
JOIN = f"""
WITH dead AS (
    DELETE FROM replica WHERE expire_time < {NOW} - {DEAD} OR replica_id = %(old)s
        OR journal_id = nullif(%(journal)s, '')
), state AS (SELECT oldest_schema FROM server_state FOR SHARE)
INSERT INTO replica
    (replica_id, journal_id, name, version, schema_version, start_time, expire_time, presence_version)
SELECT %(id)s, %(journal)s, %(name)s, %(version)s, %(schema)s, {NOW}, {NOW} + {LEASE}, 0
FROM state WHERE oldest_schema <= %(schema)s
"""  # noqa: S608 -- constants
RENEW = f"UPDATE replica SET expire_time = {NOW} + {LEASE} WHERE replica_id = %s AND expire_time > {NOW}"  # noqa: S608
CLEAR = "DELETE FROM presence WHERE replica_id NOT IN (SELECT replica_id FROM replica)"
LEAVE = "DELETE FROM replica WHERE replica_id = %s"
LIST = f"""
SELECT {NOW}, replica_id, name, version, start_time, expire_time, presence_version
FROM replica WHERE expire_time > {NOW} ORDER BY start_time, replica_id
"""  # noqa: S608
CHANGES = "SELECT number, user_id FROM credential_change WHERE number > %s ORDER BY number"
OUTDATED = (
    "a newer version of fedround has migrated the database while this server had no lease, and this version cannot use"
    " it any more: install the newer one"
)
TOLERATED_SECONDS = 5.0
SKEWED = (
    "the clock of this machine is %.0f s %s that of the database, by which trainings go: set it, since the log,"
    " certificates and object stores go by it"
)
LAST_CHANGE = "SELECT credential_changes FROM server_state"
FORGET_CHANGES = "DELETE FROM credential_change WHERE number <= %s"


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the database has found.

    Attributes:
        replicas: The replicas that have a lease, also this one.
        changed_users: Whose credentials were changed since the last look, here or elsewhere; None if that is not known.
    """

    replicas: tuple[Replica, ...]
    changed_users: frozenset[str] | None


class Listener(Protocol):
    """Is told what a session finds, in the session's thread."""

    def looked(self, look: Look) -> None:
        """Receives what a look at the database has found."""

    def woken(self, topics: frozenset[str] | None) -> None:
        """Receives the topics of a notification of another replica; None after some may have been missed."""


class Outdated(RuntimeError):
    """A newer version has migrated the database, so that this one cannot use it."""


class ReplicaSession:
    """Holds the lease of this process from `open` to `close`.

    Attributes:
        problem: Why it has ended, if it has; an error of the database is no reason.
    """

    def __init__(
        self,
        url: str,
        name: str,
        version: str,
        schema: int,
        journal_id: str,
        lease: Lease,
        clock: DatabaseClock,
        listener: Listener,
    ) -> None:
        """Connects nothing yet.

        Args:
            url: The database.
            name: The replica's name.
            version: Its version of fedround.
            schema: The number of that version's schema.
            journal_id: The id of its journal: no earlier server with the same one is alive.
            lease: The lease of the process.
            clock: The clock that it sets.
            listener: Is told what the session finds.
        """
        self._url = url
        self._name = name
        self._version = version
        self._schema = schema
        self._journal_id = journal_id
        self._lease = lease
        self._clock = clock
        self._listener = listener
        self.problem = ""
        self._session: Any = None
        self._has_others = True
        self._last_change = -1
        # Up to which change all but the latest were forgotten.
        self._trimmed = 0
        self._renew_at = self._look_at = self._sent_at = 0.0
        # What is to be sent; protected by the lock.
        self._lock = threading.Lock()
        self._topics: set[str] = set()
        self._is_urgent = False
        # Set once, by the thread that opened the session.
        self._is_closing = False
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)

    def open(self) -> None:
        """Takes the lease, and starts the thread.

        Raises:
            StoreUnavailable: The database does not answer.
            Outdated: A newer version has migrated it, and this one cannot use it any more.
        """
        import psycopg

        try:
            self._connect()
            self._look()
        except psycopg.Error as error:
            self._disconnect()
            raise StoreUnavailable(f"the database does not answer: {in_one_line(error)}") from error
        except Outdated:
            self._disconnect()
            raise
        if abs(ahead := self._clock.ahead()) > TOLERATED_SECONDS:
            log.warning(SKEWED, abs(ahead), "ahead of" if ahead > 0 else "behind")
        self.notify([LOOK])
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether its thread is, which goes on after each error of the database."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Gives the lease up, and tells the other replicas."""
        if self._is_closing:
            return
        self._is_closing = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def notify(self, topics: Collection[str], *, is_urgent: bool = True) -> None:
        """Has the other replicas woken, if there are any; returns at once."""
        if not self._has_others or self._is_closing:
            return
        with self._lock:
            is_sooner = not self._topics or (is_urgent and not self._is_urgent)
            self._topics.update(topics)
            self._is_urgent |= is_urgent
        if is_sooner:
            self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b"\0")
        except BlockingIOError:
            # It is full of wake-ups.
            return

    def _run(self) -> None:
        import psycopg

        failures = 0
        while not self._is_closing:
            try:
                if self._session is None:
                    self._connect()
                    self._look()
                    self._listener.woken(None)
                self._turn()
                failures = 0
            except Outdated as error:
                self.problem = str(error)
                self._disconnect()
                return
            except (psycopg.Error, OSError) as error:
                self._disconnect()
                if not failures:
                    log.warning("the session of the replica has ended, and is made anew: %s", in_one_line(error))
                self._wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1
        self._leave()

    def _turn(self) -> None:
        """Does what is due, and waits for more."""
        if elapsed() >= self._look_at:
            self._look()
        if elapsed() >= self._send_at:
            self._send()
        self._receive()
        self._wait(max(0.0, min(self._look_at, self._send_at) - elapsed()), self._session.fileno())

    @property
    def _send_at(self) -> float:
        """When the next notification is due."""
        if not self._topics:
            return inf
        return self._sent_at + (SEND_SECONDS if self._is_urgent else PATIENT_SECONDS)

    def _wait(self, seconds: float, *descriptors: int) -> None:
        # select() takes no descriptors from 1024 on, and each connection of a client has one.
        poll = select.poll()
        for descriptor in (self._wake_reader, *descriptors):
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(seconds * 1000):
            if descriptor == self._wake_reader:
                os.read(descriptor, 1 << 16)

    def _connect(self) -> None:
        import psycopg

        self._session = psycopg.connect(autocommit=True, **{**SETTINGS, **postgres_settings(self._url)})
        for setting in (*KEEPALIVES, f"SET statement_timeout = '{STATEMENT_SECONDS}s'"):
            self._session.execute(setting)
        self._session.execute(f"LISTEN {CHANNEL}")
        self._renew_at = self._look_at = 0.0

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _look(self) -> None:
        begun = elapsed()
        if begun >= self._renew_at or not self._lease.is_held:
            self._renew(begun)
        asked = elapsed()
        rows = self._session.execute(LIST).fetchall()
        answered = elapsed()
        changed = self._changed_users()
        self._lease.know(begun)
        self._look_at = begun + LOOK_SECONDS
        if all(row[1] != self._lease.replica_id for row in rows):
            # The lease has ended, by the clock of the database.
            self._renew_at = self._look_at = 0.0
            return
        self._clock.learn(asked, answered, rows[0][0] / 1_000_000)
        replicas = tuple(_replica(*row[1:]) for row in rows)
        self._has_others = len(replicas) > 1
        self._listener.looked(Look(replicas, changed))

    def _renew(self, begun: float) -> None:
        """Renews the lease, or takes a new one under another id: what was begun under the old one is void."""
        replica_id = self._lease.replica_id
        is_held = self._lease.is_held and self._session.execute(RENEW, (replica_id,)).rowcount
        if not is_held:
            new_id = str(uuid.uuid4())
            values = {"id": new_id, "old": replica_id or "", "journal": self._journal_id, "schema": self._schema}
            # A migration for which this version is too old has waited until no such replica had a lease.
            if not self._session.execute(JOIN, {**values, "name": self._name, "version": self._version}).rowcount:
                raise Outdated(OUTDATED)
            self._session.execute(CLEAR)
            if replica_id is not None:
                log.warning("the lease of the replica %s has ended: it goes on as %s", replica_id, new_id)
            replica_id = new_id
            reached("replica.joined")
        self._lease.take(str(replica_id), begun)
        self._renew_at = begun + RENEWAL_SECONDS

    def _changed_users(self) -> frozenset[str] | None:
        """Returns whose credentials were changed since the last call; None if that is not known."""
        if self._last_change < 0:
            self._last_change = self._session.execute(LAST_CHANGE).fetchone()[0]
            self._forget_changes()
            return None
        changes = self._session.execute(CHANGES, (self._last_change,)).fetchall()
        if not changes:
            return frozenset()
        is_whole = changes[0][0] == self._last_change + 1
        self._last_change = changes[-1][0]
        if self._last_change >= self._trimmed + KEPT_CHANGES:
            self._forget_changes()
        return frozenset(user_id for _, user_id in changes) if is_whole else None

    def _forget_changes(self) -> None:
        self._session.execute(FORGET_CHANGES, (self._last_change - KEPT_CHANGES,))
        self._trimmed = self._last_change

    def _send(self) -> None:
        with self._lock:
            topics, self._topics, self._is_urgent = self._topics, set(), False
        payloads = list(_payloads(topics))
        if len(payloads) > MAX_PAYLOADS:
            payloads = [EVERYTHING]
        self._session.execute("SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload", (CHANNEL, payloads))
        self._sent_at = elapsed()

    def _receive(self) -> None:
        topics: set[str] = set()
        for notice in self._session.notifies(timeout=0):
            if notice.pid != self._session.info.backend_pid:
                topics.update(notice.payload.split("\n"))
        if LOOK in topics:
            topics.discard(LOOK)
            self._look_at = 0.0
        if topics:
            self._listener.woken(None if EVERYTHING in topics else frozenset(topics))

    def _leave(self) -> None:
        import psycopg

        try:
            if self._session is not None:
                self._session.execute(LEAVE, (self._lease.replica_id,))
                self._topics.add(LOOK)
                self._send()
        except psycopg.Error as error:
            log.warning("the lease of the replica stays until it ends: %s", in_one_line(error))
        finally:
            self._disconnect()


def _payloads(topics: Collection[str]) -> Iterator[str]:
    """Yields topics in texts that fit into a notification."""
    some: list[str] = []
    size = 0
    for topic in sorted(topics):
        if some and size + len(topic) + 1 > PAYLOAD_BYTES:
            yield "\n".join(some)
            some, size = [], 0
        some.append(topic)
        size += len(topic) + 1
    if some:
        yield "\n".join(some)


def _replica(
    replica_id: str, name: str, version: str, start_time: int, expire_time: int, presence_version: int
) -> Replica:
    start, end = (InstantField().python_value(time) for time in (start_time, expire_time))
    if start is None or end is None:
        raise ValueError("the times of a replica are never null")
    return Replica(replica_id, name, version, start, end, presence_version)
