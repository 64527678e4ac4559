"""Servers and commands that are forked by the fork server of this test process."""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from typing import TextIO

import pytest

import forked_workers
from fork_server import MAX_ORDER

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ForkedProcess:
    """One forked process.

    Attributes:
        pid: Its process id, and the id of its process group.
        start_time: When it was forked, as `time.monotonic()` says it.
        stdout: What it writes there.
        ended: When it and all processes that it started had ended, once `wait` has returned.
    """

    def __init__(self, pid: int, start_time: float, stdout: TextIO, report: int) -> None:
        self.pid = pid
        self.start_time = start_time
        self.stdout = stdout
        self.ended: float | None = None
        self._report = report
        self._code: int | None = None
        self._lock = threading.Lock()

    def kill(self) -> None:
        """Kills it with SIGKILL; does nothing if it has ended."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Stops it gracefully; does nothing if it has ended."""
        self._signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it and all processes that it started have ended; returns its exit code.

        Raises:
            TimeoutError: They go on for longer than that.
        """
        with self._lock:
            if self._code is None:
                if not select([self._report], [], [], timeout)[0]:
                    raise TimeoutError(f"process {self.pid} has not ended within {timeout} s")
                report = os.read(self._report, MAX_ORDER)
                assert report, "the fork server has ended"
                self._code, self.ended = json.loads(report)
                os.close(self._report)
            return self._code

    def _signal(self, number: signal.Signals) -> None:
        # The fork server reports the end as soon as it has reaped the process: until then its id is not reused.
        if self._code is None and not select([self._report], [], [], 0)[0]:
            # It may have been reaped, and not yet reported.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ForkServer:
    """The fork server's other end; threads may share it."""

    def __init__(self) -> None:
        """Starts the fork server, and waits until it has imported everything."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
        more = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(sys.path), "GRPC_ENABLE_FORK_SUPPORT": "0"}
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "fork_server", str(number)]
            self._process = subprocess.Popen(command, pass_fds=[number], env={**environment, **more})
        workers = self._orders.recv(MAX_ORDER)
        assert workers, "the fork server does not start"
        forked_workers.connect(workers, os.open(os.devnull, os.O_RDONLY))

    def fork(
        self,
        argv: list[str],
        *,
        stderr: Path,
        environment: dict[str, str] | None = None,
        variables: dict[str, str] | None = None,
        failpoint: str = "",
        points: Path | None = None,
    ) -> ForkedProcess:
        """Forks a server, or the `fedround` command.

        Args:
            argv: Its arguments.
            stderr: The file that its log is appended to.
            environment: All environment variables of the command; None forks a server.
            variables: More environment variables of a server.
            failpoint: The point at which the server kills itself; needs points.
            points: The file to which each point that the server reaches first is appended.
        """
        order = {
            "argv": argv,
            "environment": environment,
            "variables": variables or {},
            "failpoint": failpoint,
            "points": None if points is None else str(points),
        }
        (stdout, its_stdout), (report, its_report) = os.pipe(), os.pipe()
        log = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with self._lock:
            socket.send_fds(self._orders, [json.dumps(order).encode()], [its_stdout, log, its_report])
            answer = self._orders.recv(MAX_ORDER)
        for given in (its_stdout, log, its_report):
            os.close(given)
        assert answer, "the fork server has ended"
        pid, start_time = json.loads(answer)
        return ForkedProcess(pid, start_time, os.fdopen(stdout), report)

    def close(self) -> None:
        """Ends the fork server, which kills what it forked."""
        self._orders.close()
        self._process.wait()


@functools.cache
def fork_server() -> ForkServer:
    """The fork server of this process: it is started when it is needed first, and ends with this process."""
    made = ForkServer()
    atexit.register(made.close)
    return made


@contextmanager
def forking_workers() -> Iterator[None]:
    """Has engines of this process fork their workers from what is imported, instead of spawning them."""
    fork_server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedround_server.engine.process.WorkerContext", forked_workers.ForkedLater)
        yield


def run(*arguments: object, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs a server that must end by itself, or the `fedround` command, to its end.

    Args:
        arguments: Its arguments.
        environment: All environment variables of the command; None runs a server.
    """
    argv = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        stderr = Path(folder) / "stderr"
        process = fork_server().fork(argv, stderr=stderr, environment=environment)
        try:
            with process.stdout:
                stdout = process.stdout.read()
            return subprocess.CompletedProcess(argv, process.wait(), stdout, stderr.read_text())
        finally:
            process.kill()
