"""Runs one training on one system, and looks at what its processes use meanwhile."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from measure import Usage, cpu_seconds, tree
from peers.common import LAYERS, Workload
from peers.systems import SYSTEMS
from servers import Unavailable, variant

HERE = Path(__file__).parent
STEP = 0.05
PR_SET_CHILD_SUBREAPER = 36


class Failed(Exception):
    """A system that is not there, or does not do its work; the text says why."""


@dataclass(frozen=True)
class Run:
    """What one training took.

    Attributes:
        version: Version of the system.
        seconds: How long each round took; the first is left out.
        server_peak_anonymous: Most bytes of anonymous memory that the server's processes had together.
        server_cpu: Seconds of CPU per round of the server's processes.
        clients_cpu: Seconds of CPU per round of the clients', together.
    """

    version: str
    seconds: list[float]
    server_peak_anonymous: int
    server_cpu: float
    clients_cpu: float


def run_training(
    name: str, clients: int, megabytes: float, layers: int, rounds: int, peers: Path, folder: Path, timeout: float
) -> Run:
    """Runs one training.

    Args:
        name: The system.
        clients: How many take part.
        megabytes: Size of the model, in 10^6 bytes.
        layers: How many tensors the model has.
        rounds: How many are counted; one more runs before.
        peers: Folder of the peers' environments.
        folder: Where to make a folder for the files of the run.
        timeout: Seconds that it may take.

    Raises:
        Failed: It did not run to its end, or its result is wrong.
    """
    python = find_python(name, peers)
    # What was written before is not for this run to wait for.
    os.sync()
    with tempfile.TemporaryDirectory(prefix="rounds-", dir=folder) as own:
        workload = Workload(clients, megabytes, rounds + 1, Path(own))
        words = (SYSTEMS[name].module or name, str(clients), str(megabytes), str(rounds + 1), own)
        os.environ[LAYERS] = str(layers)
        try:
            environment = {**os.environ, **variant(SYSTEMS[name].kinds, Path(own))}
        except Unavailable as error:
            raise Failed(str(error)) from None
        if SYSTEMS[name].is_peer:
            # Nothing of this environment, and nothing left behind in the user's home.
            environment |= {"PYTHONPATH": str(HERE), "HOME": own, "FLWR_TELEMETRY_ENABLED": "0"}
        log = Path(own) / "log"
        with (
            log.open("w") as output,
            subprocess.Popen(
                [str(python), "-m", "peers", *words],
                cwd=HERE,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                return watch(process, workload, timeout, SYSTEMS[name].relative_error)
            except Failed as error:
                raise Failed(f"{error}: {_last_line(log)}") from None
            finally:
                end(process)


def find_python(name: str, peers: Path) -> Path:
    """Returns the interpreter of a system's environment.

    Raises:
        Failed: The environment is not there.
    """
    if not SYSTEMS[name].is_peer:
        return Path(sys.executable)
    environment = SYSTEMS[name].environment
    if not (peers / environment / "installed").exists():
        absent = peers / f"{environment}.absent"
        why = absent.read_text() if absent.exists() else ""
        raise Failed(f"not installed: {why or 'install_peers.py has not run'}")
    return peers / environment / "bin" / "python"


def watch(process: "subprocess.Popen[bytes]", workload: Workload, timeout: float, relative_error: float = 0.0) -> Run:
    """Follows what a run tells, from its second round to its end.

    Args:
        process: What was started.
        workload: What it has to do.
        timeout: Seconds that it may take.
        relative_error: The largest of the change of the first weight that each update may have.
    """
    deadline = time.monotonic() + timeout
    told = _Told(process, workload.folder / "told", deadline)
    told.wait_for("round", 2)
    (server,) = (int(pid) for pid in told.all("server"))
    clients = [int(pid) for pid in told.all("client")]
    if len(clients) != workload.clients:
        raise Failed(f"{len(clients)} of {workload.clients} clients are there")
    with Usage(server, without=clients) as usage:
        before = cpu_seconds(tree(process.pid))
        told.wait_for("round", workload.rounds + 1)
        all_cpu = cpu_seconds(tree(process.pid)) - before
    (workload.folder / "seen").touch()
    told.wait_for("first", 1)
    # Each client added its number to the first weight, in each round.
    change = workload.rounds * (workload.clients + 1) / 2
    expected = float(workload.layers()[0][0]) + change
    (first,) = (float(value) for value in told.all("first"))
    if abs(first - expected) > 1e-3 * workload.rounds * workload.clients + relative_error * change:
        raise Failed(f"the average is wrong: {first}, not {expected}")
    marks = [float(mark) for mark in told.all("round")]
    counted = workload.rounds - 1
    return Run(
        version=told.all("version")[0],
        seconds=[after - before for before, after in pairwise(marks[1:])],
        server_peak_anonymous=usage.peak_anonymous,
        server_cpu=usage.cpu / counted,
        clients_cpu=(all_cpu - usage.cpu) / counted,
    )


def adopt_orphans() -> None:
    """Makes this process the parent of those below it whose own parent ends, so that none of them gets lost."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a run, and all that is left below this process, of which nothing else is."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    while left := tree(os.getpid())[1:]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
    process.wait()


class _Told:
    """What a run has told."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path, deadline: float) -> None:
        self._process = process
        self._path = path
        self._deadline = deadline

    def all(self, word: str) -> list[str]:
        """Returns everything that was told with a word."""
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{word} ")]

    def wait_for(self, word: str, times: int) -> None:
        """Waits until something has been told so often.

        Raises:
            Failed: The process ended before, or the time is over.
        """
        while len(self.all(word)) < times:
            for why in self.all("failed"):
                raise Failed(why)
            if self._process.poll() is not None:
                raise Failed(f"it ended with {self._process.returncode} before round {len(self.all('round'))}")
            if time.monotonic() > self._deadline:
                raise Failed(f"it is not done after the time that a run may take, in round {len(self.all('round'))}")
            time.sleep(STEP)


def _last_line(log: Path) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")).strip()
    return text.rpartition("\n")[2] or "it said nothing"
