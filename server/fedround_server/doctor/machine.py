"""The machine: the port, the limit of open files, and the clock."""

import resource
import socket
import time
from datetime import UTC, datetime

from fedround_server.doctor.finding import Finding

MANY_FILES = 8192
"""How many files a server needs at once for some thousands of participants: a connection each, and their uploads."""
CONNECT_SECONDS = 2.0
BUILT = datetime(2025, 1, 1, tzinfo=UTC)
"""No clock that is set shows an earlier time."""


def check_port(check: str, address: tuple[str, int], *, is_running: bool) -> Finding:
    """Checks that something listens on a port if the server runs, and nothing otherwise."""
    host, port = address
    where = f"{host}:{port}"
    if port == 0:
        return Finding(check, "ok", f"{where}: a free port at each start")
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
    try:
        socket.create_connection((target, port), CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        if is_running:
            return Finding(
                check, "note", f"the server of this data directory does not listen on {where}: has it others?"
            )
        return Finding(check, "ok", f"{where} is free")
    except OSError as error:
        return Finding(check, "fail", f"{where} cannot be reached: {error.strerror or error}")
    if is_running:
        return Finding(check, "ok", f"{where} is listening")
    return Finding(check, "fail", f"another program listens on {where}: end it, or choose another address")


def check_files() -> Finding:
    """Checks how many files a process may have open; the server takes as many as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most >= MANY_FILES:
        return Finding("open files", "ok", f"limit {'none' if most == resource.RLIM_INFINITY else most}")
    return Finding(
        "open files",
        "note",
        f"limit {most}: each connection and each upload takes one, and an aggregation one for each update: raise it"
        " (ulimit -Hn, LimitNOFILE)",
    )


def check_clock(last: datetime | None) -> Finding:
    """Checks the clock against the last entry of the audit log, if there is one."""
    now = datetime.fromtimestamp(time.time(), UTC)
    shown = now.isoformat(timespec="seconds")
    if now < BUILT:
        return Finding("clock", "fail", f"{shown}: it is not set")
    if last is not None and last > now:
        behind = round((last - now).total_seconds())
        return Finding("clock", "fail", f"{shown}, {behind} s before the last entry of the audit log: set it")
    return Finding("clock", "ok", shown)
