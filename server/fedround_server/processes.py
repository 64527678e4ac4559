"""`--processes N`: several servers on one port and one data directory, and the process that supervises them.

Each of them is a replica. The first has its uploads and its journal in the data directory, each other one in a folder
of its own there; the objects are those of all.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import structlog

from fedround_server.config import Settings, replica_name
from fedround_server.host.file_lock import locked_folder
from fedround_server.host.folder import make_durable, make_private
from fedround_server.host.service_manager import notify
from fedround_server.host.sync import sync_folder

log = structlog.get_logger("fedround.processes")
NUMBER = "_FEDROUND_PROCESS"
"""The environment variable with the number of a process that has a supervisor."""
SERVING = "fedround is serving"
LOOK_SECONDS = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a process is started again: they double each time, up to the second number."""
STABLE_SECONDS = 60.0
"""A process that has served for so long is started again as if it had never ended before."""


def own_number() -> int | None:
    """Returns the number of this process; None if it has no supervisor."""
    number = os.environ.get(NUMBER)
    return None if number is None else int(number)


def lock(data_dir: Path) -> AbstractContextManager[object]:
    """Locks the data directory of this process within the block; the supervisor has locked that of the first one.

    Raises:
        RuntimeError: A server uses it.
        OSError: It cannot be opened.
    """
    return nullcontext() if own_number() == 0 else locked_folder(data_dir)


def check_journals(data_dir: Path, processes: int) -> None:
    """Checks that there is no journal of a process of which this start has none: its files would not be recovered.

    Raises:
        RuntimeError: There is one.
    """
    for folder in sorted(data_dir.glob("process-*/journal")):
        number = folder.parent.name.removeprefix("process-")
        if number.isdigit() and int(number) >= processes and any(folder.iterdir()):
            raise RuntimeError(
                f"processes: {folder} has files that may not be on disk elsewhere: start the server with at least"
                f" --processes {int(number) + 1} once, and stop it with SIGTERM"
            )


@dataclass(eq=False)
class _Process:
    """One of the servers.

    Attributes:
        number: Its number.
        popen: The process, which may have ended.
        lifeline: Our end of its stdin: it stops when this is closed, also because this process was killed.
        serving: When it first served, as `time.monotonic()` says it; None before.
        pause: How long it was waited before it was started.
        start_at: When it is to be started again; None while it runs.
    """

    number: int
    popen: "subprocess.Popen[str]"
    lifeline: int
    serving: float | None = None
    pause: float = 0.0
    start_at: float | None = None

    def read(self) -> None:
        """Reads what it writes to stdout, to its end."""
        for line in self.popen.stdout or ():
            if line.startswith(SERVING):
                self.serving = time.monotonic()


class Supervisor:
    """Starts the processes, starts one again that ends, and ends all."""

    def __init__(self, settings: Settings, arguments: Sequence[str], places: str, stderr: TextIO | None) -> None:
        """Starts nothing yet.

        Args:
            settings: The settings of all processes.
            arguments: The arguments that they came from.
            places: Where the data is.
            stderr: Where the processes log to; None for stderr.
        """
        self._settings = settings
        self._arguments = arguments
        self._places = places
        self._stderr = stderr
        self._address = ""
        self._locks: tuple[int, ...] = ()
        self._processes: list[_Process] = []
        self._signals = 0

    def run(self) -> int:
        """Runs the processes until a signal arrives; returns the exit code.

        Raises:
            RuntimeError: The port or the data directory is taken.
            OSError: A file or folder of the data directory cannot be used.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        settings = self._settings
        make_durable(settings.data_dir)
        with locked_folder(settings.data_dir) as locks, _reserved(*settings.address) as address:
            self._locks, self._address = locks, address
            check_journals(settings.data_dir, settings.processes)
            try:
                code = self._start_all()
                if code is None:
                    self._announce()
                    self._supervise()
                    notify("STOPPING=1\nSTATUS=finishing the calls in progress")
                    log.info("stopping")
            finally:
                codes = self._end_all()
        return int(any(codes)) if code is None else code

    def _start_all(self) -> int | None:
        """Starts all processes; returns the exit code if one of them does not serve, which has said why."""
        for number in range(self._settings.processes):
            self._processes.append(self._start(number))
            # The first one makes the database and the admin.
            while number in (0, self._settings.processes - 1) and not all(one.serving for one in self._processes):
                for process in self._processes:
                    code = process.popen.poll()
                    if code is not None:
                        return code or 1
                if self._signals:
                    return 0
                time.sleep(LOOK_SECONDS)
        return None

    def _announce(self) -> None:
        count = self._settings.processes
        sys.stdout.write(f"{SERVING} on {self._address}\nthe data is in {self._places}\n")
        sys.stdout.flush()
        notify(f"READY=1\nSTATUS=serving on {self._address} with {count} processes")

    def _supervise(self) -> None:
        """Starts processes again that end, until a signal arrives."""
        while not self._signals:
            now = time.monotonic()
            for position, process in enumerate(self._processes):
                if process.start_at is not None and now >= process.start_at:
                    self._processes[position] = self._restart(process, now)
                elif process.start_at is None and process.popen.poll() is not None:
                    self._delay(process, now)
            time.sleep(LOOK_SECONDS)

    def _delay(self, process: _Process, now: float) -> None:
        """Has a process that has ended started again in a while."""
        os.close(process.lifeline)
        is_stable = process.serving is not None and now - process.serving >= STABLE_SECONDS
        process.pause = FIRST_PAUSE if is_stable or not process.pause else min(2 * process.pause, LONGEST_PAUSE)
        process.start_at = now + process.pause
        code = process.popen.returncode
        log.warning("a process has ended, and is started again", process=process.number, code=code, pause=process.pause)

    def _restart(self, process: _Process, now: float) -> _Process:
        """Starts a process again; if the system refuses, in a while."""
        try:
            return self._start(process.number, process.pause)
        except OSError as error:
            process.pause = min(2 * process.pause, LONGEST_PAUSE)
            process.start_at = now + process.pause
            log.warning("a process could not be started", process=process.number, error=str(error), pause=process.pause)
            return process

    def _start(self, number: int, pause: float = 0.0) -> _Process:
        settings = self._settings
        options = ["--listen", self._address]
        port = int(self._address.rpartition(":")[2])
        options += ["--replica-name", f"{replica_name(settings, port)}.{number}"]
        if settings.metrics_address is not None and settings.metrics_address[1]:
            host, first = settings.metrics_listen.rpartition(":")[0], settings.metrics_address[1]
            options += ["--metrics-listen", f"{host}:{first + number}"]
        if number:
            options += ["--data-dir", str(self._own_folder(number))]
        variables = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        read, write = os.pipe()
        try:
            # In a session of its own: a signal of the terminal is for this process, which passes it on.
            popen = subprocess.Popen(  # noqa: S603 -- the program and the arguments of this process
                [sys.executable, "-P", "-m", "fedround_server", *self._arguments, *options],
                stdin=read,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env={**variables, NUMBER: str(number)},
                start_new_session=True,
                # Inherited, so that the data directory stays locked while one of them is alive.
                pass_fds=self._locks,
            )
        except OSError:
            os.close(write)
            raise
        finally:
            os.close(read)
        process = _Process(number, popen, write, pause=pause)
        threading.Thread(target=process.read, name=f"output of process {number}", daemon=True).start()
        return process

    def _own_folder(self, number: int) -> Path:
        """Makes the folder of what a process has for itself, with a link to the objects of all."""
        folder, objects = self._settings.data_dir / f"process-{number}", self._settings.data_dir / "objects"
        make_private(folder)
        link = folder / "objects"
        if self._settings.objects:
            link.unlink(missing_ok=True)
        elif not link.is_symlink():
            make_private(objects)
            link.symlink_to(Path("..") / "objects")
        sync_folder(self._settings.data_dir)
        return folder

    def _end_all(self) -> list[int]:
        """Stops the processes, and waits for their ends; returns their exit codes."""
        running = [process for process in self._processes if process.start_at is None]
        for process in running:
            process.popen.terminate()
        while any(process.popen.poll() is None for process in running):
            if self._signals > 1:
                # The second signal does not wait for calls in progress.
                for process in running:
                    process.popen.kill()
            time.sleep(LOOK_SECONDS)
        for process in running:
            os.close(process.lifeline)
        return [process.popen.returncode for process in running]

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1


@contextmanager
def _reserved(host: str, port: int) -> Iterator[str]:
    """Takes a port within the block, for the processes, which share it; yields the address.

    Raises:
        RuntimeError: It is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    target = f"[{host}]" if ":" in host else host
    try:
        # Alone at first: another server would share it silently.
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            bound = alone.getsockname()[1]
        # It does not listen, and so gets no connections.
        holder = socket.socket(family)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        holder.bind((host, bound))
    except OSError as error:
        raise RuntimeError(
            f"cannot listen on {target}:{port}: if another server does, choose another address with --listen"
        ) from error
    with holder:
        yield f"{target}:{bound}"
