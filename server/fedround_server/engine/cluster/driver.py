"""What runs in the driver: it gives ranges of aggregations to Ray, and writes what comes back."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import VersionFile
from fedround_server.engine import worker
from fedround_server.engine.cluster import tasks
from fedround_server.engine.jobs import AggregationJob, Replay, StagedResult
from fedround_server.engine.process import ATTEMPTS, WorkerLost

if TYPE_CHECKING:
    from fedround_server.engine.computation import Step
    from fedround_server.engine.source import Span

R = TypeVar("R")

STORE_BYTES = 512 << 20
"""Shared memory of a Ray that the server starts: ranges wait there to be written. More than that goes to files."""
MOST_AHEAD = 64
"""How many ranges may wait to be written, or be computed."""
POLL_SECONDS = 1.0
REACH_SECONDS = 5.0
REACH_ATTEMPTS = 3
"""How often in a row the head must not be reached until it counts as away."""
ANSWER_SECONDS = 60.0
"""How long a cluster has to run a small task: a worker may have to start first."""
MESSAGE = 300
"""Characters of Ray's messages that are logged."""


class ClusterAway(Exception):
    """The cluster cannot be used now; the message says why."""


class NotConnected(ClusterAway):
    """This driver is new: the one before ended during the job, or before it."""


def prepare(*, no_sync: bool = False) -> None:
    """Prepares the process, without Ray; `no_sync` says whether nothing is forced to disk."""
    # Ray prints to stdout, which is the server's.
    os.dup2(2, 1)
    worker.prepare(no_sync=no_sync)


def connect(address: str, folder: Path, cpus: int) -> str:
    """Connects this process with a cluster, or starts Ray on this machine.

    Args:
        address: The address of the cluster as Ray takes it; empty for a Ray of this process alone, which ends with it.
        folder: Where that has its sockets and logs; private.
        cpus: How many tasks it runs at a time.

    Returns:
        The host and the port where the cluster's head listens.

    Raises:
        ClusterAway: It is away, or has other versions of Ray, Python or fedround.
    """
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Never a Ray that was not asked for.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        # Tasks see the machine's GPUs, or none, as other programs do; Ray warns where this is not set.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if not address:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        # Ray lets all users of the machine into its folder, but not into the one around it.
        options["_temp_dir"] = str(folder / "ray")
        # Tasks are accepted from this process alone, and all ports are those of loopback: this is Ray's switch for it.
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    os.environ.update(environment)
    import ray

    try:
        ray.init(address or "local", **options)
        there = _version_there(ray)
    except Exception as error:
        raise ClusterAway(_line(error)) from None
    if there != tasks.installed_version():
        raise ClusterAway(f"its nodes have fedround {there}, and the server has {tasks.installed_version()}")
    head: str = endpoint(address) or ray.get_runtime_context().gcs_address
    return head


def run_aggregation(files: BlobFiles, job: AggregationJob, threads: int, head: str) -> StagedResult:
    """Aggregates the updates of a round into a staged file; Ray's workers compute.

    Args:
        files: Where the stored files are.
        job: What to aggregate.
        threads: How many threads of this process compute what is not divided.
        head: Where the head listens.

    Raises:
        AggregationFailed, BlobDamaged: As for `worker.run_aggregation`.
        ClusterAway: The cluster is away.
        WorkerLost: Workers died of a range again and again.
    """
    return worker.run_aggregation(files, job, threads, RaySpread(files, job, head))


def run_replay(files: BlobFiles, job: AggregationJob, recorded: VersionFile | None, threads: int, head: str) -> Replay:
    """Aggregates the updates of a round once more, like `worker.run_replay`; raises what `run_aggregation` does."""
    return worker.run_replay(files, job, recorded, threads, RaySpread(files, job, head))


class RaySpread:
    """Computes ranges of an aggregation as tasks of Ray, and returns them in order.

    A task whose worker dies is repeated by Ray.
    """

    def __init__(self, files: BlobFiles, job: AggregationJob, head: str) -> None:
        """Sends the job to the cluster.

        Raises:
            ClusterAway: This process is not connected, or the cluster is away.
        """
        import ray

        if not ray.is_initialized():
            raise NotConnected("the driver has ended, and another one takes over")
        self._ray, self._head, self._files = ray, head, files
        with _translated():
            check_reachable(head)
            # One that was started again at the same address knows nothing of this process, and would not answer.
            _version_there(ray)
            self._job = ray.put(job)
            self._task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(tasks.run_range)
            self._ahead = min(MOST_AHEAD, max(2, 2 * int(ray.cluster_resources().get("CPU", 1))))

    def map(self, step: Step[R], ranges: Sequence[Sequence[Span]]) -> Iterator[R]:
        """Yields what a step makes of each span, in order."""
        running: deque[Any] = deque()
        try:
            with _translated():
                sent = self._ray.put(step)
            for spans in ranges:
                with _translated():
                    running.append(self._task.remote(self._files, self._job, sent, spans))
                if len(running) > self._ahead:
                    yield from self._result(running.popleft())
            while running:
                yield from self._result(running.popleft())
        except ClusterAway:
            raise
        except BaseException:
            # What fails needs no more of them.
            for task in running:
                self._ray.cancel(task)
            raise

    def _result(self, task: Any) -> list[Any]:
        with _translated():
            while not self._ray.wait([task], timeout=POLL_SECONDS)[0]:
                check_reachable(self._head)
            result: list[Any] = self._ray.get(task)
            return result


def _version_there(ray: Any) -> str:
    """Returns which version of fedround a node has."""
    task = ray.remote(num_cpus=0)(tasks.installed_version).remote()
    version: str = ray.get(task, timeout=ANSWER_SECONDS)
    return version


def endpoint(address: str) -> str:
    """Returns the host and the port of an address of a cluster; empty if it has none, such as "auto"."""
    bare = address.removeprefix("ray://")
    return bare if ":" in bare else ""


def check_reachable(head: str) -> None:
    """Checks that the head of the cluster listens: calls of Ray wait for it for a minute, and then end the process.

    Raises:
        ClusterAway: It does not.
    """
    host, _, port = head.rpartition(":")
    for attempt in range(1, REACH_ATTEMPTS + 1):
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except OSError as error:
            if attempt == REACH_ATTEMPTS:
                raise ClusterAway(f"{head}: {error.strerror or error}") from None
            time.sleep(POLL_SECONDS)
        else:
            return


@contextmanager
def _translated() -> Iterator[None]:
    """Raises errors of tasks as they were raised there, and those of Ray as what they mean for the job."""
    from ray import exceptions

    try:
        yield
    except exceptions.RayTaskError as error:
        if error.cause is None:
            raise
        # With the traceback of the task.
        raise error.cause from error
    except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError) as error:
        raise WorkerLost(f"Ray's workers died {ATTEMPTS} times with a range: {_line(error)}") from None
    except (exceptions.RayError, ConnectionError) as error:
        raise ClusterAway(_line(error)) from None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}..."
