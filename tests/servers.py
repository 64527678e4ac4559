"""Real servers in processes of their own, for tests that kill them."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from forked import ForkedProcess, fork_server
from ports import hold_a_port

MODULE = ("-m", "fedround_server")


class Server:
    """A server over a data directory. Its `with` block is the time in which it runs.

    It is forked, which saves it and its worker all imports, or a program of its own: `MODULE` where the test measures
    the process or changes what it inherits. One that is forked ends at a failpoint.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        database: str = "",
        options: tuple[str, ...] = (),
        program: tuple[str, ...] = (),
        variables: dict[str, str] | None = None,
        failpoint: str = "",
    ) -> None:
        """Starts nothing yet.

        Args:
            data_dir: Its data directory.
            database: The URL of its database; empty for SQLite.
            options: More options.
            program: What Python runs; empty for a forked server.
            variables: More environment variables of such a program, also when it is started again.
            failpoint: The failpoint at which a forked server ends.
        """
        self.failpoint = failpoint
        self.data_dir = data_dir
        self.variables = variables or {}
        self.program = program
        self._options = ["--database", database, *options]
        self._port: socket.socket | None = None
        self._process: subprocess.Popen[str] | ForkedProcess | None = None

    def __enter__(self) -> Self:
        self._port = hold_a_port()
        try:
            self.start()
        except BaseException:
            self._port.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._port is not None
        self.stop()
        self._port.close()

    @property
    def address(self) -> str:
        """Where it serves, also behind a restart in the same block."""
        assert self._port is not None
        return f"127.0.0.1:{self._port.getsockname()[1]}"

    @property
    def admin_token(self) -> str:
        return (self.data_dir / "admin.token").read_text().strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    @property
    def _log_path(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".log")

    def start(self) -> None:
        """Starts the server, and waits until it serves; one that does not is ended."""
        options = ["--listen", self.address, "--data-dir", str(self.data_dir), *self._options]
        if self.program:
            self._process = self._run_program(options)
        else:
            points = self._log_path.with_suffix(".points") if self.failpoint else None
            self._process = fork_server().fork(options, stderr=self._log_path, failpoint=self.failpoint, points=points)
        assert self._process.stdout is not None
        try:
            assert self._process.stdout.readline() == f"fedround is serving on {self.address}\n", self.log
        except BaseException:
            self.kill()
            raise

    def _run_program(self, options: list[str]) -> "subprocess.Popen[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
        with self._log_path.open("a") as log:
            return subprocess.Popen(
                [sys.executable, *self.program, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment | self.variables,
            )

    def kill(self) -> None:
        """Ends the server without a warning."""
        assert self._process is not None
        self._process.kill()
        self._reap()

    def stop(self) -> int:
        """Stops the server gracefully; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._reap()

    def wait(self) -> int:
        """Waits for the end of a server after SIGTERM; returns its exit code."""
        return self._reap()

    def _reap(self) -> int:
        assert self._process is not None
        code = self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


def memory(pid: int, name: str) -> int:
    """Returns a figure of a process's memory in bytes, such as VmRSS, RssAnon, or VmHWM for the most it ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(child) for text in lists for child in text.split()]
    return [*children, *(one for child in children for one in descendants(child))]
