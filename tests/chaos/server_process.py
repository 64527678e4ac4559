"""A server that is started by the fork server, killed, and restarted on the same data and the same port."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from servers import hold_a_port

# How long anything may take before the run fails; what is measured is recorded, not bounded.
TIMEOUT_SECONDS = 300.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class ServerProcess:
    """One server process."""

    pid: int
    start_time: float
    serving: float | None = None
    answered: float | None = None
    ended: float | None = None
    code: int | None = None


@dataclass
class RestartableServer:
    """A data directory, a port, and the servers that come one after the other. Use it with `with`."""

    folder: Path
    database: str
    options: tuple[str, ...] = ("--log-level=warning",)
    current: ServerProcess | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.data_dir = self.folder / "data"
        self.log = self.folder / "server.log"
        self.points = self.folder / "points"
        self._changed = threading.Condition()
        self._ready = False

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._port = hold_a_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
        paths = os.pathsep.join(sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, **ONE_THREAD, "PYTHONPATH": paths, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        )
        self._reader = threading.Thread(target=self._listen, name="fork-server", daemon=True)
        self._reader.start()
        self._wait(lambda: self._ready, "the fork server is not ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.current is not None and self.current.ended is None:
            self.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
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

    def start(self, failpoint: str | None = None) -> ServerProcess:
        """Forks a server; returns at once."""
        order = {
            "argv": [
                f"--listen={self.address}",
                f"--data-dir={self.data_dir}",
                f"--database={self.database}",
                *self.options,
            ],
            "failpoint": failpoint,
            "log": str(self.log),
            "points": str(self.points),
        }
        assert self._process.stdin is not None
        with self._changed:
            self.current = None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._wait(lambda: self.current, "no server is started")
        assert self.current is not None
        return self.current

    def wait_serving(self, process: ServerProcess) -> bool:
        """Waits until a server serves or ends; returns whether it serves."""
        self._wait(lambda: process.serving or process.ended, "the server does not serve")
        return process.serving is not None

    def wait_ended(self, process: ServerProcess, timeout: float) -> bool:
        """Waits until a server and its worker have ended; returns whether they have."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: process.ended, timeout))

    def kill(self) -> ServerProcess:
        """Kills the server with SIGKILL."""
        process = self.current
        assert process is not None
        # Until its end is reported it may be a zombie, but its id is not reused.
        if process.ended is None:
            os.kill(process.pid, signal.SIGKILL)
        assert self.wait_ended(process, TIMEOUT_SECONDS), "the worker of a killed server goes on"
        return process

    def stop(self) -> ServerProcess:
        """Stops the server gracefully."""
        process = self.current
        assert process is not None
        os.kill(process.pid, signal.SIGTERM)
        assert self.wait_ended(process, TIMEOUT_SECONDS), "the server does not end"
        return process

    def _wait(self, condition: Any, failure: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT_SECONDS), f"{failure}:\n{self._tail()}"

    def _tail(self) -> str:
        return self.log.read_text()[-4000:] if self.log.exists() else ""

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                self._on_answer(message)
                self._changed.notify_all()

    def _on_answer(self, message: dict[str, Any]) -> None:
        if message["event"] == "ready":
            self._ready = True
        elif message["event"] == "started":
            self.current = ServerProcess(message["pid"], message["at"])
        elif self.current is not None and message["event"] == "serving":
            self.current.serving = message["at"]
        elif self.current is not None:
            self.current.ended, self.current.code = message["at"], message["code"]
