"""Runs engine jobs in a process of their own: the only way into torch."""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Protocol, Self, TypeVar

from fedround_server.domain.model import BlobRef
from fedround_server.engine.job import AggregationJob

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)
ATTEMPTS = 3


class WorkerLost(RuntimeError):
    """The worker died with a job, again and again."""


class Engine(Protocol):
    """What the coordinator asks for; jobs are pure functions of files."""

    async def find_not_finite(self, path: Path) -> str | None:
        """Returns the name of a tensor of a safetensors file that contains NaN or Inf.

        Raises:
            WorkerLost: The job cannot be done.
        """

    async def aggregate(self, job: AggregationJob, target: Path) -> BlobRef:
        """Aggregates the updates of a round into a new file, forced to disk.

        Raises:
            AggregationFailed: The result has values that the model's dtype cannot hold.
            WorkerLost: The job cannot be done.
        """


class WorkerEngine:
    """An engine in one spawned process, which is replaced when it dies. Open it with `with`, before any gRPC server."""

    def __init__(self) -> None:
        """Remembers nothing but that there is no worker yet."""
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Starts the worker, without waiting until it has loaded torch."""
        self._pool = _start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the worker; a job under way is not waited for."""
        if self._pool is not None:
            _end(self._pool)
            self._pool = None

    async def find_not_finite(self, path: Path) -> str | None:
        """Looks for NaN and Inf."""
        return await self._run(_find_not_finite, path)

    async def aggregate(self, job: AggregationJob, target: Path) -> BlobRef:
        """Aggregates a round; target is made by a job that came to its end only."""
        return await self._run(_aggregate, job, target)

    async def _run(self, function: Callable[P, R], *args: P.args, **_: P.kwargs) -> R:
        for _attempt in range(ATTEMPTS):
            pool = self._pool
            if pool is None:
                raise WorkerLost("the engine is closed")
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
            except BrokenProcessPool:
                log.warning("the worker died with %s: another one takes over", function.__name__)
                if self._pool is pool:
                    self._pool = _start()
                    pool.shutdown(wait=False)
        raise WorkerLost(f"the worker died {ATTEMPTS} times with {function.__name__}")


def _start() -> ProcessPoolExecutor:
    # Spawned, never forked: gRPC does not survive a fork.
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare)
    pool.submit(_load_torch)
    return pool


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
    # The pool's own thread joins its processes. Joining here too, both would wait for the same children, and the one
    # that comes second learns nothing.
    pool.shutdown(wait=True, cancel_futures=True)


def _prepare() -> None:
    """Runs first in the worker: it leaves signals to the server and goes when the server goes, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = multiprocessing.parent_process()
    if server is not None:
        threading.Thread(target=_follow, args=(server.sentinel,), name="follow-server", daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _load_torch() -> None:
    import torch

    torch.set_grad_enabled(False)


def _find_not_finite(path: Path) -> str | None:
    from fedround_server.engine.tensors import TensorFile, find_not_finite

    with TensorFile(path) as file:
        return find_not_finite(file)


def _aggregate(job: AggregationJob, target: Path) -> BlobRef:
    from fedround_server.engine.aggregation import aggregate

    # A worker that died in an earlier attempt may have left a part.
    part = target.with_name(f"{target.name}.{uuid.uuid4()}")
    blob = aggregate(job, part)
    part.replace(target)
    return blob
