"""What `fedround doctor` says of a server: of its machine, and of what it is doing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedround.v1.server_pb2 import ServerStatus
from fedround_client.command.serve import require
from fedround_client.command.top_view import refusal
from fedround_client.printable import one_line

MODULES = ("fedround_server", "peewee", "pydantic_settings")
SLOW_SECONDS = 0.1
"""From what average on a commit is called slow: it waits for the disk."""
CHECK_SECONDS = 120.0


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: What was checked.
        state: "ok", "note" for something optional that is missing, or "fail".
        found: What was found, and what to do about it.
    """

    check: str
    state: str
    found: str


def check_machine(data_dir: Path, database: str, objects: str) -> list[Finding]:
    """Has the server's package check its data directory, its database and its files on this machine."""
    require("doctor --data-dir", "server", MODULES)
    # -P: do not import modules from the working directory.
    command = [sys.executable, "-P", "-m", "fedround_server.doctor", "--data-dir", str(data_dir)]
    environment = {name: value for name, value in os.environ.items() if name != "FEDROUND_TOKEN"}
    if database:
        # A URL may contain a password, and the arguments of a process are visible to all users.
        environment["FEDROUND_DATABASE"] = database
    if objects:
        environment["FEDROUND_OBJECTS"] = objects
    try:
        ended = subprocess.run(  # noqa: S603 -- without a shell
            command, stdout=subprocess.PIPE, text=True, env=environment, timeout=CHECK_SECONDS, check=False
        )
        return [Finding(**one) for one in json.loads(ended.stdout)]
    except subprocess.TimeoutExpired:
        return [Finding("server", "fail", f"the checks have not ended within {CHECK_SECONDS:.0f} s")]
    except (ValueError, TypeError):
        return [Finding("server", "fail", "the checks have failed: see above")]


def check_status(status: ServerStatus) -> Iterator[Finding]:
    """Says what an operator should know of what a running server is doing."""
    yield Finding("server version", "ok", one_line(status.version))
    refused = refusal(status.disk)
    if refused:
        yield Finding("server disk", "fail", refused)
    elif status.disk.free_bytes < 2 * status.disk.min_free_bytes:
        yield Finding("server disk", "note", "nearly full: models are refused soon")
    elif status.disk.stored_bytes > 0.9 * status.disk.max_stored_bytes:
        yield Finding("server disk", "note", "the files have nearly the size that they may have (max_stored_bytes)")
    else:
        yield Finding("server disk", "ok", "enough room")
    crashes = status.worker.crashes
    found = (
        f"{crashes} worker processes ended unexpectedly since the start: see the server's log" if crashes else "none"
    )
    yield Finding("worker crashes", "note" if crashes else "ok", found)
    commits = status.database.commits
    seconds = status.database.commit_seconds / commits if commits else 0.0
    speed = f"{seconds * 1000:.1f} ms for a commit on average"
    if seconds > SLOW_SECONDS:
        yield Finding("database speed", "note", f"{speed}: the disk is slow, or another program uses it")
    else:
        yield Finding("database speed", "ok", speed)
