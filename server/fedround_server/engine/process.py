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
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, ParamSpec, TypeVar

from fedround_server.counters import JobQueue
from fedround_server.domain.errors import WorkerKilled
from fedround_server.host.allocator import keep_freed_blocks

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)
ATTEMPTS = 3


class WorkerLost(RuntimeError):
    """The worker died of a job, again and again."""


class Worker:
    """One spawned process that runs jobs one after the other."""

    def __init__(self, prepare: Callable[[], None], queue: JobQueue | None = None) -> None:
        """Starts nothing yet.

        Args:
            prepare: Runs in the process before its first job, and may take its time.
            queue: Where its jobs are counted; None for a queue of its own.
        """
        self._queue = queue or JobQueue()
        self._prepare = prepare
        self._pool: _Pool | None = None

    def start(self) -> None:
        """Starts the process, without waiting until it is ready."""
        self._pool = _Pool(self._prepare)

    def end(self) -> None:
        """Ends the process without waiting for a job."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.kill()

    def replace(self) -> None:
        """Ends the process with its job, and starts another one, unless the worker has ended."""
        if self._pool is not None:
            self.end()
            self.start()

    @property
    def process_id(self) -> int | None:
        """The id of the process, which may just have ended; None if none was started."""
        return None if self._pool is None else self._pool.process_id

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a job in the process; a job whose process died is repeated.

        Raises:
            WorkerLost: The process died of it again and again, or cannot start, or the worker has ended.
            WorkerKilled: It was killed from outside each time: the job is not to blame.
        """
        with self._queue.job(function.__name__.removeprefix("run_")):
            return await self._run(function, *args, **kwargs)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
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
                    self._queue.crashes += 1
                    self._pool = _Pool(self._prepare)
                if counts:
                    deaths += 1
                    kills += await pool.was_killed()
        if kills == deaths:
            raise WorkerKilled(f"the worker was killed {ATTEMPTS} times: is the server out of memory? try again")
        raise WorkerLost(f"the worker died {ATTEMPTS} times with {function.__name__}")


class WorkerContext(SpawnContext):
    """Spawns the process of an executor, and remembers it: an executor does not show its processes.

    Processes are spawned, never forked: gRPC does not survive a fork.
    """

    def __init__(self) -> None:
        self.processes: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        """Makes a process: what an executor calls. The base class has the process's class here."""
        process = SpawnProcess(*args, **kwargs)
        self.processes.append(process)
        return process


class _Pool:
    """A process, and the jobs that it was given."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._context = WorkerContext()
        self._executor = ProcessPoolExecutor(1, mp_context=self._context, initializer=_set_up)
        self.prepared = self._executor.submit(prepare)
        self._jobs: list[Future[Any]] = []
        self._ending = threading.Lock()

    @property
    def process_id(self) -> int | None:
        # Whether it is alive is not asked: that would take its exit code from the executor's thread.
        return next((process.pid for process in self._context.processes), None)

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        self._jobs = [job for job in self._jobs if not _is_over(job)]
        job = self._executor.submit(function, *args, **kwargs)
        self._jobs.append(job)
        return job

    def died_with(self, job: Future[Any]) -> bool:
        """Returns whether the process, now dead, was running the job: the first one that is not over.

        A process that dies before its first job counts against all of them: otherwise it would be started for ever.
        """
        return not _is_over(self.prepared) or job is next(job for job in self._jobs if not _is_over(job))

    async def was_killed(self) -> bool:
        """Returns whether the dead process was killed by SIGKILL: by the system, short of memory, or by an operator."""
        # Only one thread may wait for a process's end: the executor's own.
        await asyncio.to_thread(self._end)
        return any(process.exitcode == -signal.SIGKILL for process in self._context.processes)

    def kill(self) -> None:
        for process in self._context.processes:
            process.kill()
        # The executor's own thread joins its processes. If this thread joined, too, both would wait for the same child,
        # and the second would not learn its exit code.
        self._end()

    def _end(self) -> None:
        # All callers that had a job there may come at once, and two shutdowns at once close the same files twice.
        with self._ending:
            self._executor.shutdown(wait=True, cancel_futures=True)


def _is_over(job: Future[Any]) -> bool:
    """Returns whether a job ended otherwise than by its process's death."""
    return job.done() and (job.cancelled() or not isinstance(job.exception(), BrokenProcessPool))


def allow_many_files() -> None:
    """Raises this process's limit of open files as far as allowed: an aggregation maps all updates of its round."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS has hard limits that it does not accept as soft ones.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _set_up() -> None:
    """Runs first in the worker: it leaves signals to the server, and ends when the server ends in whatever way."""
    allow_many_files()
    keep_freed_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = multiprocessing.parent_process()
    if server is not None:
        threading.Thread(target=_follow, args=(server.sentinel,), name="follow-server", daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
