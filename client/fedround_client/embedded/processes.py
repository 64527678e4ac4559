"""Child processes: started, each with a log, monitored, and ended together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fedround_client.embedded.parent_watchdog import GRACE

TAIL_LINES = 15


class ProcessExited(Exception):
    """A process ended unexpectedly."""


@dataclass(frozen=True)
class ManagedProcess:
    """A child process.

    Attributes:
        name: Its name in messages.
        process: The process.
        log: File with its standard error.
        may_finish: Whether it may end by itself with exit code 0.
        reader: Thread that reads its standard output.
    """

    name: str
    process: subprocess.Popen[str]
    log: Path
    may_finish: bool
    reader: threading.Thread


class ProcessGroup:
    """Starts child processes, and ends them at the end of the `with` block, or when this process is killed."""

    def __init__(self, logs: Path) -> None:
        """Creates an empty group.

        Args:
            logs: An existing folder for the logs.
        """
        self._logs = logs
        self._processes: list[ManagedProcess] = []

    def start(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        on_line: Callable[[str], None],
        token: str | None = None,
        folder: Path | None = None,
        may_finish: bool = False,
    ) -> None:
        """Starts a Python module as a process.

        Args:
            name: Its name, also that of its log.
            module: Name of the module.
            arguments: Its command line, which other users of the machine can read: do not pass the token.
            on_line: Called with each line of its standard output, in a thread.
            token: Its token for the server, passed in the environment.
            folder: Its working directory; that of this process by default.
            may_finish: Whether it may end by itself with exit code 0.
        """
        log = self._logs / f"{name.replace(' ', '-')}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(  # noqa: S603 -- our own modules
                [sys.executable, "-P", "-m", "fedround_client.embedded.parent_watchdog", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(token),
                cwd=folder,
                # In a new session, so that Ctrl-C in a terminal reaches only this process, which ends the others.
                start_new_session=True,
            )
        reader = threading.Thread(target=_read, args=(process.stdout, on_line), name=name, daemon=True)
        self._processes.append(ManagedProcess(name, process, log, may_finish, reader))
        reader.start()

    def check(self) -> None:
        """Checks that no process has ended unexpectedly.

        Raises:
            ProcessExited: One has; with the end of its log.
        """
        for child in self._processes:
            code = child.process.poll()
            if code is not None and not (code == 0 and child.may_finish):
                raise ProcessExited(
                    f"{child.name.capitalize()} {_exit_text(code)}. The end of {child.log}:\n{_tail(child.log)}"
                )

    def kill(self) -> None:
        """Kills all processes, with all processes that they started: for those that leave nothing of value."""
        for child in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        """Returns the group."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends all processes: sends SIGTERM, waits for a few seconds, and sends SIGKILL."""
        for child in self._processes:
            child.process.terminate()
        deadline = time.monotonic() + GRACE
        for child in self._processes:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            # The whole session, which may contain workers of the process.
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
            child.reader.join()
            if child.process.stdin is not None:
                child.process.stdin.close()


def _environment(token: str | None) -> dict[str, str]:
    """Returns the environment without settings for other servers, and with one thread per process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
    return inherited | {"OMP_NUM_THREADS": "1"} | ({"FEDROUND_TOKEN": token} if token else {})


def _read(lines: IO[str] | None, on_line: Callable[[str], None]) -> None:
    if lines is not None:
        with lines:
            for line in lines:
                on_line(line.rstrip("\n"))


def _exit_text(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:]) or "(it is empty)"
