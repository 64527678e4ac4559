"""The server's side of a cluster: connects the driver, and waits while the cluster is away."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Self, TypeVar

from fedround_server.counters import JobQueue
from fedround_server.domain.errors import WorkerKilled
from fedround_server.engine.cluster import driver
from fedround_server.engine.cluster.driver import ClusterAway, NotConnected, endpoint
from fedround_server.engine.process import ATTEMPTS, Worker, WorkerLost

R = TypeVar("R")

log = logging.getLogger(__name__)
CHECK_SECONDS = 5.0
"""How often an idle cluster is looked for."""
PROBE_SECONDS = 1.0
"""How often one that is away is."""
CONNECT_SECONDS = 180.0
"""How long it may take to connect, or to start Ray on a busy machine."""
RETRY_SECONDS = 10.0
"""How long after one that is there, but could not be used, it is tried again."""


class Cluster:
    """A cluster of Ray, or a Ray of the server's own. Open it with `with`, before any gRPC server.

    One job at a time has the driver.
    """

    def __init__(
        self, address: str, data_dir: Path, cpus: int, *, no_sync: bool = False, queue: JobQueue | None = None
    ) -> None:
        """Starts nothing yet.

        Args:
            address: The address of the cluster, as Ray takes it; empty for a Ray of the server's own.
            data_dir: The data directory of the server, for which the folder of its own Ray is named.
            cpus: How many tasks the server's own Ray runs at a time.
            no_sync: Whether nothing is forced to disk.
            queue: Where jobs are counted.
        """
        self._address = address
        self._cpus = cpus
        digest = hashlib.sha256(str(data_dir.absolute()).encode()).hexdigest()
        # Not in the data directory: the paths of sockets may have 107 characters, and Ray adds 70.
        self._folder = Path(f"/tmp/fedround-ray-{digest[:12]}")  # noqa: S108 -- private, and fails if another's
        self._driver = Worker(partial(driver.prepare, no_sync=no_sync), queue)
        self._turn = asyncio.Lock()
        self._head = ""
        self._is_away = False

    def __enter__(self) -> Self:
        """Starts the driver, which does not connect yet.

        Raises:
            RuntimeError: Ray is not installed.
            OSError: The folder of the server's own Ray cannot be made.
        """
        if find_spec("ray") is None:
            raise RuntimeError(
                'engine: ray is not installed: run pip install "fedround[ray]", or leave out --engine ray'
            )
        if not self._address:
            # What a server that was killed has left.
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(0o700)
        self._driver.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the driver without waiting for a job; the Ray of the server's own ends with it."""
        self._driver.end()
        if not self._address:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def process_id(self) -> int | None:
        """The id of the driver; None if it was not started."""
        return self._driver.process_id

    async def run(self, function: Callable[..., R], *args: object) -> R:
        """Runs a job in the driver, once the cluster is there, and again if it was away meanwhile.

        Args:
            function: A function of `driver`.
            *args: Its arguments, without the last one, the address of the head.

        Raises:
            WorkerLost: The driver, or workers of Ray, died of it again and again.
            WorkerKilled: The driver was killed from outside each time.
        """
        deaths = 0
        async with self._turn:
            while True:
                await self._connect()
                try:
                    return await self._driver.run(function, *args, self._head)
                except NotConnected:
                    # The driver that takes over knows nothing of the cluster.
                    self._head = ""
                    deaths += 1
                    if deaths == ATTEMPTS:
                        raise WorkerLost(f"the driver died {ATTEMPTS} times with {function.__name__}") from None
                except ClusterAway as error:
                    self._lose(error)

    async def watch(self) -> None:
        """Connects, and says when the cluster is away and when it is back; never ends."""
        while True:
            async with self._turn:
                await self._connect()
            await asyncio.sleep(CHECK_SECONDS)

    async def _connect(self) -> None:
        """Returns once the driver is connected with a cluster whose head listens."""
        while True:
            try:
                await _reach(self._head or endpoint(self._address))
            except OSError as error:
                self._lose(error)
                await asyncio.sleep(PROBE_SECONDS)
                continue
            if self._head:
                return
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    self._head = await self._driver.run(driver.connect, self._address, self._folder, self._cpus)
            except (ClusterAway, WorkerLost, WorkerKilled, TimeoutError) as error:
                self._lose(error)
                # Ray cannot be initialized again where that has failed.
                self._driver.replace()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                log.info("%s is %s", self._name, "back" if self._is_away else "ready")
                self._is_away = False

    def _lose(self, error: Exception) -> None:
        """Begins anew with another driver: one that has lost its cluster cannot go back to it."""
        if not self._is_away:
            log.warning("%s is away, and large aggregations wait for it: %s", self._name, str(error) or "no answer")
            self._is_away = True
        if self._head:
            self._head = ""
            self._driver.replace()

    @property
    def _name(self) -> str:
        return f"Ray at {self._address}" if self._address else "Ray"


async def _reach(head: str) -> None:
    """Checks that something listens there; an empty address is not checked.

    Raises:
        OSError: It does not.
    """
    if head:
        host, _, port = head.rpartition(":")
        async with asyncio.timeout(driver.REACH_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
