"""A worker process that is replaced when it dies."""

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, ParamSpec, TypeVar

from fedround_server.domain.errors import WorkerKilled
from fedround_server.host.allocator import keep_freed_blocks

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)
ATTEMPTS = 3
# Spawned, never forked: gRPC does not survive a fork.
CONTEXT: BaseContext = multiprocessing.get_context("spawn")


class WorkerLost(RuntimeError):
    """The worker died of a job, again and again."""


class Worker:
    """One spawned process for jobs, one after the other."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        """Starts nothing yet.

        Args:
            prepare: Runs in the process before its first job, and may take its time.
        """
        self._prepare = prepare
        self._pool: _Pool | None = None

    def start(self) -> None:
        """Starts the process, without waiting until it is ready."""
        self._pool = _Pool(self._prepare)

    def end(self) -> None:
        """Ends the process; a job under way is not waited for."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.kill()

    def replace(self) -> None:
        """Ends the process with what it is at, and starts another one; none after the end."""
        if self._pool is not None:
            self.end()
            self.start()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a job in the process; a job whose process died is done again.

        Raises:
            WorkerLost: The process died of it again and again, or cannot start, or there is none.
            WorkerKilled: It was killed from outside each time: nothing is known against the job.
        """
        deaths = kills = 0
        while deaths < ATTEMPTS:
            pool = self._pool
            if pool is None:
                raise WorkerLost("the engine is closed")
            job: Future[R] | None = None
            try:
                job = pool.submit(function, *args, **kwargs)
                return await asyncio.wrap_future(job)
            except BrokenProcessPool:
                # A job that only waited goes on waiting, however often others kill the process.
                counts = job is not None and pool.died_with(job)
                if self._pool is pool:
                    log.warning("the worker died: another one takes over")
                    self._pool = _Pool(self._prepare)
                if counts:
                    deaths += 1
                    kills += await pool.was_killed()
        if kills == deaths:
            raise WorkerKilled(f"the worker was killed {ATTEMPTS} times: is the server out of memory? try again")
        raise WorkerLost(f"the worker died {ATTEMPTS} times with {function.__name__}")


class _Pool:
    """A process, and the jobs that it was given."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self.executor = ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=_settle_in)
        self._prepared = self.executor.submit(prepare)
        # The executor forgets them when it breaks.
        self._processes = self.executor._processes or {}
        self._jobs: list[Future[Any]] = []
        self._ending = threading.Lock()

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        self._jobs = [job for job in self._jobs if not _is_over(job)]
        job = self.executor.submit(function, *args, **kwargs)
        self._jobs.append(job)
        return job

    def died_with(self, job: Future[Any]) -> bool:
        """Tells whether the process, now dead, was at the job: it does the first one that is not over.

        A process that dies before its first job is everybody's misfortune: it would never start.
        """
        return not _is_over(self._prepared) or job is next(job for job in self._jobs if not _is_over(job))

    async def was_killed(self) -> bool:
        """Tells whether the dead process was killed: by the system, which is short of memory, or by somebody."""
        # Only one thread may wait for a process's end: the executor's own.
        await asyncio.to_thread(self._end)
        return any(process.exitcode == -signal.SIGKILL for process in self._processes.values())

    def kill(self) -> None:
        for process in list((self.executor._processes or {}).values()):
            process.kill()
        # The pool's own thread joins its processes. Joining here too, both would wait for the same children, and the
        # one that comes second learns nothing.
        self._end()

    def _end(self) -> None:
        # All that had a job there may come at once, and two shutdowns at once close the same files twice.
        with self._ending:
            self.executor.shutdown(wait=True, cancel_futures=True)


def _is_over(job: Future[Any]) -> bool:
    """Tells whether a job came to an end other than its process's death."""
    return job.done() and (job.cancelled() or not isinstance(job.exception(), BrokenProcessPool))


def allow_many_files() -> None:
    """Lets this process open as many files as it may: an aggregation maps all updates of its round at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS has hard limits that it does not accept as soft ones.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _settle_in() -> None:
    """Runs first in the worker: it leaves signals to the server and goes when the server goes, however that ends."""
    allow_many_files()
    keep_freed_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = multiprocessing.parent_process()
    if server is not None:
        threading.Thread(target=_follow, args=(server.sentinel,), name="follow-server", daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
