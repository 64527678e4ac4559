"""What the server is doing and what it uses: one source for GetServerStatus and for Prometheus."""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.uploads.space import Space
from fedround_server.counters import Counters
from fedround_server.domain.replica import Replica
from fedround_server.host.usage import cpu_seconds, resident_bytes
from fedround_server.store.queries.usage import StoreUsage

USAGE_SECONDS = 3.0
"""How old what the database holds may be: to count it takes time of the thread that also commits updates."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """The disk of the data directory, in bytes.

    Attributes:
        total: Its size.
        free: What is free for the server.
        min_free: What new models leave free; updates leave half.
        stored: The size of all stored files.
        max_stored: The largest size of all stored files.
        unfinished: The size of unfinished uploads.
    """

    total: int
    free: int
    min_free: int
    stored: int
    max_stored: int
    unfinished: int


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What the server is doing and what it uses.

    Attributes:
        version: The version of fedround.
        time: The present time.
        counters: What has been counted since the start. It changes: to be read before the event loop goes on.
        memory_bytes: Resident memory of the server's process.
        cpu_seconds: CPU time of the server's process.
        worker_memory_bytes: Resident memory of the worker processes, by name.
        disk: The disk of the data directory.
        store: What the database holds, as of some seconds ago at most.
        replica_id: The id of this server among the replicas of its database; None on SQLite.
        replicas: The replicas that are alive, also this one; none on SQLite.
    """

    version: str
    time: datetime
    counters: Counters
    memory_bytes: int
    cpu_seconds: float
    worker_memory_bytes: Mapping[str, int]
    disk: DiskUsage
    store: StoreUsage
    replica_id: str | None = None
    replicas: tuple[Replica, ...] = ()


class StatusReader:
    """Reads the status of the server."""

    def __init__(self, context: Context, space: Space) -> None:
        self._context = context
        self._space = space
        self._version = installed_version()
        self._usage: StoreUsage | None = None
        self._usage_time = 0.0
        self._reading = asyncio.Lock()

    async def read(self) -> ServerStatus:
        """Returns the status.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        usage = await self._read_usage()
        blobs, limits, engine = self._context.blobs, self._context.limits, self._context.engine
        return ServerStatus(
            version=self._version,
            time=self._context.clock.now(),
            counters=self._context.counters,
            memory_bytes=resident_bytes(os.getpid()),
            cpu_seconds=cpu_seconds(),
            worker_memory_bytes={name: resident_bytes(process) for name, process in engine.process_ids().items()},
            disk=DiskUsage(
                total=blobs.total_bytes(),
                free=blobs.free_bytes(),
                min_free=limits.min_free_bytes,
                stored=blobs.stored_bytes,
                max_stored=limits.max_stored_bytes,
                unfinished=self._space.unfinished_bytes,
            ),
            store=usage,
            replica_id=self._context.store.replica_id,
            replicas=self._context.peers.replicas,
        )

    async def _read_usage(self) -> StoreUsage:
        """Returns what the database holds; asks it once for all callers, and not again for a while."""
        async with self._reading:
            if self._usage is None or time.monotonic() - self._usage_time > USAGE_SECONDS:
                self._usage = await self._context.store.server.usage()
                self._usage_time = time.monotonic()
            return self._usage


def installed_version() -> str:
    """Returns the version of fedround that is installed."""
    try:
        return version("fedround")
    except PackageNotFoundError:
        return "unknown"
