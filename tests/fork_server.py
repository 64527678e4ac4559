"""A fork server: a process that has imported everything, and forks servers and commands.

A server that is started anew spends two and a half seconds of CPU on imports, and its worker as long again; one that is
forked spends fifty milliseconds. It is the real one in every other respect: `main` with real arguments, a real port, a
real worker process. Nothing of gRPC runs here, and no thread. The `fedround` command, whose imports take a second,
is forked in the same way.

Orders come over a socket: one JSON object each, with the argv and the environment, for a server also more variables,
failpoint and points, and three files: its stdout, its stderr, and where its end is reported. The answer is its process
id and when it was forked.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from select import select
from typing import Any

import forked_workers

SUBREAPER = 36
MAX_ORDER = 1 << 16
HEAVY = (
    "torch",
    "psycopg",
    "fedround_client.command",
    "fedround_server.__main__",
    "fedround_server.engine.aggregation",
    "fedround_server.engine.uncertainty.moments",
    "fedround_server.engine.prediction",
    "dp_accounting.pld.privacy_loss_distribution",
)


@dataclass
class Child:
    """A forked process.

    Attributes:
        report: Where its end is reported.
        code: Its exit code, once it has ended; other processes of its group may go on for a moment.
    """

    report: int
    code: int | None = None


def main() -> None:
    """Forks what is ordered until the other side closes the socket, then kills what is left."""
    _load()
    workers = forked_workers.start(int(sys.argv[1]))
    # Workers that outlive their server become children of this process.
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    orders = socket.socket(fileno=int(sys.argv[1]))
    wake, wakeup = socket.socketpair()
    for end in (wake, wakeup):
        end.setblocking(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    children: dict[int, Child] = {}
    orders.send(workers)
    while True:
        # The later workers of a server that has ended are children of another process: no signal comes when they end.
        is_ending = any(child.code is not None for child in children.values())
        if is_ending:
            _reap(children)
        for ready in select([orders, wake], [], [], 0.01 if is_ending else None)[0]:
            if ready is wake:
                wake.recv(MAX_ORDER)
                _reap(children)
                continue
            data, files, _, _ = socket.recv_fds(orders, MAX_ORDER, 3)
            if not data:
                return _kill_all(children)
            stdout, stderr, report = files
            at = time.monotonic()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for one in (orders, wake, wakeup):
                    one.close()
                for child in [report, *(one.report for one in children.values())]:
                    os.close(child)
                _become(json.loads(data), stdout, stderr)
            os.setpgid(pid, pid)
            os.close(stdout)
            os.close(stderr)
            children[pid] = Child(report)
            orders.send(json.dumps([pid, at]).encode())


def _load() -> None:
    for module in HEAVY:
        with contextlib.suppress(ImportError):  # some are extras
            importlib.import_module(module)
    process = importlib.import_module("fedround_server.engine.process")
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"what is forked must have one thread, not {threads}"

    class ForkedFirst(ForkContext):
        """Forks the first worker, which is made before gRPC and any thread is started."""

        def __init__(self) -> None:
            self.processes: list[Any] = []

        def Process(self, *args: Any, **kwargs: Any) -> ForkProcess:  # type: ignore[override]  # noqa: N802
            process.WorkerContext = forked_workers.ForkedLater
            made = ForkProcess(*args, **kwargs)
            self.processes.append(made)
            return made

    process.WorkerContext = ForkedFirst
    # Otherwise each forked process visits all of these objects, and copies their pages, when it collects garbage.
    gc.collect()
    gc.freeze()


def _become(order: dict[str, Any], stdout: int, stderr: int) -> None:
    """Becomes a server, or the command."""
    os.setpgid(0, 0)
    with Path(os.devnull).open() as nothing:
        for source, target in ((nothing.fileno(), 0), (stdout, 1), (stderr, 2)):
            os.dup2(source, target)
    os.close(stdout)
    os.close(stderr)
    code: object = 1
    try:
        code = _serve(order) if order["environment"] is None else _command(order)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _serve(order: dict[str, Any]) -> int:
    from fedround_server import __main__, failpoints

    os.environ.update(order["variables"])
    if "--objects" in order["argv"]:
        # The client of the object store has threads before the first worker is forked.
        importlib.import_module("fedround_server.engine.process").WorkerContext = forked_workers.ForkedLater
    if order["points"]:
        points = os.open(order["points"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        failpoints.listen(_Listener(points, failpoints.Kill(order["failpoint"]) if order["failpoint"] else None))
    return __main__.main(order["argv"])


def _command(order: dict[str, Any]) -> int:
    from fedround_client import command

    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["fedround", *order["argv"]]
    command.main()
    return 0


class _Listener:
    """Records each point when it is reached first, then lets it kill."""

    def __init__(self, file: int, kill: Any) -> None:
        self._file = file
        self._kill = kill
        self._seen: set[str] = set()

    def __call__(self, name: str) -> None:
        if name not in self._seen:
            self._seen.add(name)
            os.write(self._file, f"{name}\n".encode())
        if self._kill is not None:
            self._kill(name)


def _reap(children: dict[int, Child]) -> None:
    """Reports each server that has ended together with all processes that it started."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] in children:
                children[ended[0]].code = os.waitstatus_to_exitcode(ended[1])
    for pid, child in list(children.items()):
        if child.code is not None and not _group_exists(pid):
            os.write(child.report, json.dumps([child.code, time.monotonic()]).encode())
            os.close(child.report)
            del children[pid]


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_all(children: dict[int, Child]) -> None:
    for group in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
