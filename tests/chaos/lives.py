"""The lives of a server: born by the nursery, killed, born again on the same data and the same port."""

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
PATIENCE = 300.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class Life:
    """One server process."""

    pid: int
    born: float
    serving: float | None = None
    answered: float | None = None
    ended: float | None = None
    code: int | None = None


@dataclass
class Lives:
    """A data directory, a port, and the servers that come one after the other. Use it with `with`."""

    folder: Path
    database: str
    options: tuple[str, ...] = ("--log-level=warning",)
    current: Life | None = field(init=False, default=None)

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
            [sys.executable, "-m", "chaos.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, **ONE_THREAD, "PYTHONPATH": paths, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        )
        self._reader = threading.Thread(target=self._listen, name="nursery", daemon=True)
        self._reader.start()
        self._wait(lambda: self._ready, "the nursery is not ready")
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
        """The points that all lives together have reached."""
        return set(self.points.read_text().split())

    def start(self, failpoint: str | None = None) -> Life:
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
        self._wait(lambda: self.current, "no server is born")
        assert self.current is not None
        return self.current

    def wait_serving(self, life: Life) -> bool:
        """Waits until a server serves; tells whether it does, or else has ended."""
        self._wait(lambda: life.serving or life.ended, "the server does not serve")
        return life.serving is not None

    def wait_ended(self, life: Life, timeout: float) -> bool:
        """Waits until a server has ended with its worker; tells whether it has."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: life.ended, timeout))

    def kill(self) -> Life:
        """Ends the server without a warning, wherever it is."""
        life = self.current
        assert life is not None
        # Until its end is told it may be a zombie, but the number is not given to somebody else.
        if life.ended is None:
            os.kill(life.pid, signal.SIGKILL)
        assert self.wait_ended(life, PATIENCE), "the worker of a killed server goes on"
        return life

    def stop(self) -> Life:
        """Ends the server in good order."""
        life = self.current
        assert life is not None
        os.kill(life.pid, signal.SIGTERM)
        assert self.wait_ended(life, PATIENCE), "the server does not end"
        return life

    def _wait(self, condition: Any, complaint: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), f"{complaint}:\n{self._tail()}"

    def _tail(self) -> str:
        return self.log.read_text()[-4000:] if self.log.exists() else ""

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._changed:
                self._hear(told)
                self._changed.notify_all()

    def _hear(self, told: dict[str, Any]) -> None:
        if told["event"] == "ready":
            self._ready = True
        elif told["event"] == "born":
            self.current = Life(told["pid"], told["at"])
        elif self.current is not None and told["event"] == "serving":
            self.current.serving = told["at"]
        elif self.current is not None:
            self.current.ended, self.current.code = told["at"], told["code"]
