"""A server that is forked, killed, and restarted on the same data and the same port."""

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from forked import ForkedProcess, fork_server
from ports import hold_a_port

# How long anything may take before the run fails; what is measured is recorded, not bounded.
TIMEOUT_SECONDS = 300.0
SERVING = "fedround is serving"


class ServerProcess:
    """One server process.

    Attributes:
        serving: When it served, as `time.monotonic()` says it.
        answered: When it answered a client first.
    """

    def __init__(self, forked: ForkedProcess) -> None:
        self._forked = forked
        self.pid = forked.pid
        self.start_time = forked.start_time
        self.serving: float | None = None
        self.answered: float | None = None
        self.code: int | None = None
        self._served_or_ended = threading.Event()
        self._reader = threading.Thread(target=self._read, name="server-output", daemon=True)
        self._reader.start()

    def others(self) -> list[int]:
        """The processes that it started, of which not all are its children."""
        return [pid for pid in _processes() if pid != self.pid and _group(pid) == self.pid]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it and to the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @property
    def ended(self) -> float | None:
        """When it and its worker had ended."""
        return self._forked.ended

    def wait_serving(self) -> bool:
        """Waits until it serves or ends; returns whether it serves."""
        assert self._served_or_ended.wait(TIMEOUT_SECONDS), "the server does not serve"
        return self.serving is not None or not self.wait_ended(TIMEOUT_SECONDS)

    def wait_ended(self, timeout: float) -> bool:
        """Waits until it and its worker have ended; returns whether they have."""
        try:
            self.code = self._forked.wait(timeout)
        except TimeoutError:
            return False
        self._reader.join()
        return True

    def terminate(self) -> None:
        """Starts a graceful shutdown, unless it has ended."""
        self._forked.terminate()

    def kill(self) -> None:
        """Kills it with SIGKILL, unless it has ended."""
        self._forked.kill()
        assert self.wait_ended(TIMEOUT_SECONDS), "the worker of a killed server goes on"

    def stop(self) -> None:
        """Stops it gracefully."""
        self.terminate()
        assert self.wait_ended(TIMEOUT_SECONDS), "the server does not end"

    def _read(self) -> None:
        with self._forked.stdout as output:
            for line in output:
                if line.startswith(SERVING):
                    self.serving = monotonic()
                    self._served_or_ended.set()
        self._served_or_ended.set()


@dataclass
class RestartableServer:
    """A data directory, a port, and the servers that come one after the other. Use it with `with`."""

    folder: Path
    database: str
    options: tuple[str, ...] = ("--log-level=warning",)
    variables: dict[str, str] = field(default_factory=dict)
    current: ServerProcess | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.data_dir = self.folder / "data"
        self.log = self.folder / "server.log"
        self.points = self.folder / "points"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._port = hold_a_port()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.current is not None:
            self.current.kill()
        self._port.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port.getsockname()[1]}"

    @property
    def admin_token(self) -> str:
        return (self.data_dir / "admin.token").read_text().strip()

    @property
    def reached(self) -> set[str]:
        """The points that all processes together have reached."""
        return set(self.points.read_text().split())

    def count(self, point: str) -> int:
        """Returns how many processes have reached a point."""
        return self.points.read_text().split().count(point) if self.points.exists() else 0

    def start(self, failpoint: str = "") -> ServerProcess:
        """Forks a server; returns at once."""
        argv = [f"--listen={self.address}", f"--data-dir={self.data_dir}", f"--database={self.database}", *self.options]
        forked = fork_server().fork(
            argv, stderr=self.log, variables=self.variables, failpoint=failpoint, points=self.points
        )
        self.current = ServerProcess(forked)
        return self.current


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0
