"""Servers of simulations that are forked, which saves each of them and its worker the imports.

Those that the `fedround` command starts are started as users do.
"""

import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedround_client.embedded.processes import ManagedProcess, ProcessGroup
from fedround_client.simulation import run
from forked import ForkedProcess, fork_server


class ForkedPopen:
    """A forked process as a `subprocess.Popen`."""

    stdin = None

    def __init__(self, forked: ForkedProcess) -> None:
        self.pid = forked.pid
        self.terminate = forked.terminate
        self._forked = forked

    def poll(self) -> int | None:
        try:
            return self._forked.wait(0)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        try:
            return self._forked.wait(timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired("fedround_server", timeout or 0) from None


class ForkedGroup(ProcessGroup):
    """A group of processes whose server is forked."""

    def start(
        self, name: str, module: str, arguments: Sequence[str], *, on_line: Callable[[str], None], **_: Any
    ) -> None:
        assert module == "fedround_server"
        log: Path = self._logs / f"{name}.log"
        forked = fork_server().fork(list(arguments), stderr=log)

        def read() -> None:
            with forked.stdout:
                for line in forked.stdout:
                    on_line(line.rstrip("\n"))

        reader = threading.Thread(target=read, daemon=True)
        process: Any = ForkedPopen(forked)
        self._processes.append(ManagedProcess(name, process, log, False, reader))
        reader.start()


@pytest.fixture(autouse=True)
def forked_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ProcessGroup", ForkedGroup)
