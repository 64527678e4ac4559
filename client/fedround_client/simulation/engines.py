"""Engines: where the workers of a simulation run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol, TypeAlias

from fedround_client.simulation.functions import SimulationFailed

EngineName: TypeAlias = Literal["processes", "ray"]

WORKER_MARK = "FEDROUND_SIMULATION_WORKER"
"""The environment variable by which a process knows that it is a worker."""
END_SECONDS = 5.0
"""How long a worker has to end after SIGTERM."""


class Engine(Protocol):
    """Runs functions in worker processes."""

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Starts a call in a worker that is free."""

    def close(self) -> None:
        """Ends the workers, whatever they do."""


def open_engine(name: EngineName, workers: int) -> Engine:
    """Returns an engine with a number of workers.

    Raises:
        ValueError: There is no such engine.
        SimulationFailed: Ray is not installed, or this process is a worker itself.
    """
    if name not in ("processes", "ray"):
        raise ValueError(f'engine must be "processes" or "ray", not {name!r}.')
    if name == "ray" and find_spec("ray") is None:
        raise SimulationFailed('The engine "ray" needs Ray, not installed here: pip install "fedround[ray]"')
    return RayEngine(workers) if name == "ray" else ProcessEngine(workers)


def check_not_a_worker() -> None:
    """Checks that a simulation may start in this process.

    Raises:
        SimulationFailed: A worker imports the script of the user, which starts another simulation.
    """
    if WORKER_MARK in os.environ:
        raise SimulationFailed(
            'simulate was called while a worker imports your script: call it below `if __name__ == "__main__":`.'
        )


class ProcessEngine:
    """Workers in the processes of a `concurrent.futures.ProcessPoolExecutor`, started by spawn."""

    def __init__(self, workers: int) -> None:
        """Creates the pool; the processes start with the calls."""
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
        self._processes: set[BaseProcess] = set()

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Starts a call; the pool starts a process if none is free."""
        before = set(multiprocessing.active_children())
        with _environment_of_workers(), _interrupts_blocked():
            future = self._pool.submit(function, *arguments)
        self._processes |= set(multiprocessing.active_children()) - before
        return future

    def close(self) -> None:
        """Ends the processes: those that do not end after SIGTERM are killed."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(END_SECONDS)
            process.kill()
        self._pool.shutdown(cancel_futures=True)


class RayEngine:
    """Workers as tasks of Ray, each with one CPU. Uses the Ray of the program if one is initialized."""

    def __init__(self, workers: int) -> None:
        """Starts Ray on this machine, unless the program has done so."""
        # Before the import: Ray asks for it, so that tasks without a GPU see those of the machine as before.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray: Any = ray
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        self._environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), WORKER_MARK: "1"}
        self._calls: list[Any] = []

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Starts a call as a task."""
        remote = self._ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": self._environment})(function)
        call = remote.remote(*arguments)
        self._calls.append(call)
        future: Future[None] = call.future()
        return future

    def close(self) -> None:
        """Ends the tasks, and Ray if it was started here."""
        for call in self._calls:
            self._ray.cancel(call, force=True)
        if self._owns_ray:
            self._ray.shutdown()


def failure(error: BaseException) -> SimulationFailed:
    """Returns why a worker has failed, from the exception of its call."""
    cause = getattr(error, "cause", None) or error  # Ray wraps the exception
    if isinstance(cause, SimulationFailed):
        return cause
    if isinstance(error, BrokenProcessPool):
        return SimulationFailed("A worker process has ended unexpectedly, for example because memory is short.")
    return SimulationFailed(f"A worker has failed: {type(cause).__name__}: {cause}")


@contextmanager
def _environment_of_workers() -> Iterator[None]:
    """Sets what processes that are started in the block inherit: their mark, and one thread for numerical libraries.

    With several threads, results of numerical libraries may depend on their number.
    """
    added = {WORKER_MARK: "1"} | {
        name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ
    }
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks SIGINT in processes that are started in the block: Ctrl-C ends this process, which ends the others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Ends this process with its parent, also when that is killed."""
    threading.Thread(target=_end_with_parent, name="parent watchdog", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
