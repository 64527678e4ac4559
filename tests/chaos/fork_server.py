"""A fork server: a process that has imported everything, and forks one server after the other.

A server that is started anew spends two and a half seconds of CPU on imports, one that is forked fifty milliseconds.
It is the real one in every other respect: `main` with real arguments, a real port, a real worker process. Nothing of
gRPC runs here, and no thread.

Reads one JSON object a line: argv, failpoint, log, points. Writes one a line: started, serving, ended.
"""

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

SUBREAPER = 36
SERVING = "fedround is serving"
HEAVY = (
    "torch",
    "psycopg",
    "fedround_server.__main__",
    "fedround_server.engine.aggregation",
    "fedround_server.engine.uncertainty.moments",
)


def main() -> None:
    _load()
    # Workers that outlive their server become children of this process.
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    _send(event="ready")
    for line in sys.stdin:
        _start(json.loads(line))


def _load() -> None:
    for module in HEAVY:
        with contextlib.suppress(ImportError):  # PostgreSQL's driver is an extra
            importlib.import_module(module)
    process = importlib.import_module("fedround_server.engine.process")
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"what is forked must have one thread, not {threads}"
    # The worker is made before gRPC is started, so it can be forked.
    process.CONTEXT = multiprocessing.get_context("fork")


def _start(order: dict[str, Any]) -> None:
    """Forks a server and reports when it starts, serves and ends."""
    reader, writer = os.pipe()
    start_time = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _serve(order, writer)
    os.close(writer)
    _send(event="started", pid=pid, at=start_time)
    # The server's worker has the pipe, too: it closes when both have ended.
    with os.fdopen(reader) as said:
        for line in said:
            if line.startswith(SERVING):
                _send(event="serving", pid=pid, at=time.monotonic())
    _, status = os.waitpid(pid, 0)
    _wait_for_children()
    _send(event="ended", pid=pid, at=time.monotonic(), code=os.waitstatus_to_exitcode(status))


def _wait_for_children() -> None:
    """Waits until all processes of the server have ended, too."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _serve(order: dict[str, Any], writer: int) -> None:
    """Becomes the server."""
    from fedround_server import __main__, failpoints

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (writer, 1), (log, 2)):
        os.dup2(source, target)
    points = os.open(order["points"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    failpoints.listen(_Listener(points, failpoints.Kill(order["failpoint"]) if order["failpoint"] else None))
    code = 1
    try:
        code = __main__.main(order["argv"])
    finally:
        sys.stdout.flush()
        os._exit(code)


class _Listener:
    """Records each point when it is reached first, then lets it kill."""

    def __init__(self, file: int, kill: Any) -> None:
        self._file = file
        self._kill = kill
        self._seen: set[str] = set()

    def __call__(self, name: str) -> None:
        from fedround_server.engine import process

        if name not in self._seen:
            self._seen.add(name)
            os.write(self._file, f"{name}\n".encode())
            if name == "start.swept":
                # From here on there are threads, and soon gRPC: a worker that replaces this one is spawned.
                process.CONTEXT = multiprocessing.get_context("spawn")
        if self._kill is not None:
            self._kill(name)


def _send(**words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
