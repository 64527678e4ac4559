"""A worker process that is replaced when it dies."""

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)
ATTEMPTS = 3


class WorkerLost(RuntimeError):
    """The worker died with a job, again and again."""


class Worker:
    """One spawned process for jobs, one after the other."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        """Starts nothing yet.

        Args:
            prepare: Runs in the process before its first job, and may take its time.
        """
        self._prepare = prepare
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Starts the process, without waiting until it is ready."""
        self._pool = self._new_pool()

    def end(self) -> None:
        """Ends the process; a job under way is not waited for."""
        pool, self._pool = self._pool, None
        if pool is not None:
            _kill(pool)

    def replace(self) -> None:
        """Ends the process with what it is at, and starts another one."""
        self.end()
        self.start()

    async def run(self, function: Callable[P, R], *args: P.args, **_: P.kwargs) -> R:
        """Runs a job in the process; a job whose process died is done again.

        Raises:
            WorkerLost: The process died with it again and again, or there is none.
        """
        for _attempt in range(ATTEMPTS):
            pool = self._pool
            if pool is None:
                raise WorkerLost("the engine is closed")
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
            except BrokenProcessPool:
                log.warning("the worker died with %s: another one takes over", function.__name__)
                if self._pool is pool:
                    self._pool = self._new_pool()
                    pool.shutdown(wait=False)
        raise WorkerLost(f"the worker died {ATTEMPTS} times with {function.__name__}")

    def _new_pool(self) -> ProcessPoolExecutor:
        # Spawned, never forked: gRPC does not survive a fork.
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in)
        pool.submit(self._prepare)
        return pool


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
    # The pool's own thread joins its processes. Joining here too, both would wait for the same children, and the one
    # that comes second learns nothing.
    pool.shutdown(wait=True, cancel_futures=True)


def allow_many_files() -> None:
    """Lets this process open as many files as it may: an aggregation maps all updates of its round at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS has hard limits that it does not accept as soft ones.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _settle_in() -> None:
    """Runs first in the worker: it leaves signals to the server and goes when the server goes, however that ends."""
    allow_many_files()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = multiprocessing.parent_process()
    if server is not None:
        threading.Thread(target=_follow, args=(server.sentinel,), name="follow-server", daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
