"""Workers that are forked by a process that has imported everything: later ones of forked servers, and those of tests.

A process must not fork itself once gRPC runs, and a worker that is spawned imports everything anew: a second or two of
CPU. This is multiprocessing's own fork server, forked from ours instead of started.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any


class WorkerProcess(ForkServerProcess):
    """A worker that belongs to its server's process group, and writes its errors where the server does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server, self._group, self._environment = os.getpid(), os.getpgrp(), dict(os.environ)

    def run(self) -> None:
        """Runs in the worker."""
        os.setpgid(0, self._group)
        os.environ.clear()
        os.environ.update(self._environment)
        log = os.open(f"/proc/{self._server}/fd/2", os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 2)
        os.close(log)
        super().run()


class ForkedLater(ForkServerContext):
    """Takes the place of the engine's context in a process that has called `start` or `connect`."""

    def __init__(self) -> None:
        self.processes: list[WorkerProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]  # noqa: N802
        process = WorkerProcess(*args, **kwargs)
        self.processes.append(process)
        return process


def start(*others: int) -> bytes:
    """Forks multiprocessing's fork server, for this process and all that are forked from it; it ends with them.

    Returns its address. It must be forked while there is one thread.

    Args:
        others: Files that it must not keep open.
    """
    # It warns of what servers that were killed have left.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    resource_tracker.ensure_running()
    sys.warnoptions.pop()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # a free name, which no file has
    listener.listen()
    is_needed, needed = os.pipe()
    if os.fork() == 0:
        for file in (needed, *others):
            os.close(file)
        reduction.recvfds = _receive
        try:
            forkserver.main(listener.fileno(), is_needed, [])
        finally:
            os._exit(0)
    os.close(is_needed)
    address: bytes = listener.getsockname()
    listener.close()
    connect(address, needed)
    return address


def _receive(connection: socket.socket, count: int, receive: Callable[..., Any] = reduction.recvfds) -> Any:
    """Receives what a worker is to have; the fork server would end if a server is killed while it sends it."""
    try:
        return receive(connection, count)
    except (EOFError, OSError, RuntimeError) as error:
        # What the fork server goes on after.
        raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error


def connect(address: bytes, needed: int) -> None:
    """Has this process use the fork server that another one has started.

    Args:
        address: Where it listens.
        needed: A file that its workers keep open.
    """
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address, server._forkserver_alive_fd = address, needed
    # It is not the child of those who use it, who would wait for it to see whether it runs.
    server.ensure_running = lambda: None
