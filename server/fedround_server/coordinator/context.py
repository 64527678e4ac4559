"""The parts that the use cases share."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from fedround_server.blobs import Blobs
from fedround_server.coordinator.admissions import Admissions
from fedround_server.coordinator.peers import Peers
from fedround_server.coordinator.presence import Presence
from fedround_server.coordinator.sessions import Sessions
from fedround_server.coordinator.tasks import Tasks
from fedround_server.counters import Counters
from fedround_server.domain.limits import DEFAULTS, Limits
from fedround_server.engine.executor import Engine
from fedround_server.store import Store
from fedround_server.traces import NO_TRACES, Traces
from fedround_server.wakeups import Hub


class Clock(Protocol):
    """Time, so that tests can control it."""

    def now(self) -> datetime:
        """Returns the wall time: aware, in UTC."""

    async def sleep(self, duration: timedelta) -> None:
        """Waits, by a clock that is never set."""


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        """Returns the wall time."""
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        """Waits by the monotonic clock."""
        await asyncio.sleep(max(0.0, duration.total_seconds()))


class StoreClock(SystemClock):
    """The time of the store's database, which all replicas share."""

    def __init__(self, store: Store) -> None:
        """Makes the clock of a store."""
        self._store = store

    def now(self) -> datetime:
        """Returns the time."""
        return self._store.now()


@dataclass(frozen=True)
class Context:
    """The parts of a server, which the use cases join.

    Attributes:
        background: Runs what goes on for as long as the server does; a task that fails ends the server.
        architectures: The operator's factories of models, by name.
        tasks: Runs what must not stop half way.
        presence: Which users are connected.
        sessions: Which programs take part in rounds.
        peers: The other servers on the database.
        counters: Counts what the server does.
        traces: Makes spans.
        admissions: What updates must be.
        new_id: Makes the ids of everything that is created.
        new_user_id: Makes the id of a user with a name; None for `new_id`.
    """

    store: Store
    blobs: Blobs
    engine: Engine
    hub: Hub
    background: asyncio.TaskGroup
    limits: Limits = DEFAULTS
    architectures: Mapping[str, str] = field(default_factory=dict)
    tasks: Tasks = field(default_factory=Tasks)
    presence: Presence = field(default_factory=Presence)
    sessions: Sessions = field(default_factory=Sessions)
    peers: Peers = field(default_factory=Peers)
    clock: Clock = field(default_factory=SystemClock)
    counters: Counters = field(default_factory=Counters)
    traces: Traces = NO_TRACES
    admissions: Admissions = field(default_factory=Admissions)
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())
    new_user_id: Callable[[str], str] | None = None
