"""The demo's processes: started with a log each, watched, and ended together."""

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

from fedround_client.demo.parent_watchdog import GRACE

TAIL_LINES = 15


class ChildEnded(Exception):
    """A process ended that should not have."""


@dataclass(frozen=True)
class Child:
    """A process of the demo.

    Attributes:
        name: What the demo calls it.
        process: The process.
        log: What it wrote to standard error.
        may_finish: Whether it may end by itself, if it does so with exit code 0.
        reader: Reads its standard output.
    """

    name: str
    process: subprocess.Popen[str]
    log: Path
    may_finish: bool
    reader: threading.Thread


class Children:
    """Starts processes; none is left at the end of the `with` block, or when this process is killed."""

    def __init__(self, logs: Path) -> None:
        """Takes the folder for the logs, which must exist."""
        self._logs = logs
        self._children: list[Child] = []

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
            name: What to call it; also names its log.
            module: The module.
            arguments: Its command line. Others on the machine can read that, so it is no place for the token.
            on_line: Called with each line of its standard output, in a thread.
            token: What it shows to the server.
            folder: Where it works; here by default.
            may_finish: Whether it may end by itself.
        """
        log = self._logs / f"{name.replace(' ', '-')}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(  # noqa: S603 -- our own modules
                [sys.executable, "-P", "-m", "fedround_client.demo.parent_watchdog", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(token),
                cwd=folder,
                # Ctrl-C in a terminal goes to every process of the session; this one ends the others in order.
                start_new_session=True,
            )
        reader = threading.Thread(target=_read, args=(process.stdout, on_line), name=name, daemon=True)
        self._children.append(Child(name, process, log, may_finish, reader))
        reader.start()

    def check(self) -> None:
        """Checks that all are well.

        Raises:
            ChildEnded: One is not; with the end of its log.
        """
        for child in self._children:
            code = child.process.poll()
            if code is not None and not (code == 0 and child.may_finish):
                raise ChildEnded(f"{child.name.capitalize()} {_how(code)}. The end of {child.log}:\n{_tail(child.log)}")

    def __enter__(self) -> Self:
        """Returns the children."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends all of them: asks, waits for a few seconds, kills."""
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + GRACE
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            # Whoever is left of its session: the process itself, or a worker that it left behind.
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
            child.reader.join()
            if child.process.stdin is not None:
                child.process.stdin.close()


def _environment(token: str | None) -> dict[str, str]:
    """Ours, without settings for other servers, and with one thread a process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
    return inherited | {"OMP_NUM_THREADS": "1"} | ({"FEDROUND_TOKEN": token} if token else {})


def _read(lines: IO[str] | None, on_line: Callable[[str], None]) -> None:
    if lines is not None:
        with lines:
            for line in lines:
                on_line(line.rstrip("\n"))


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:]) or "(it is empty)"
