"""Failpoints: named points in the commit protocol at which tests kill the server with SIGKILL.

With `FEDROUND_FAILPOINT=NAME` or `NAME:N` in the environment, the process kills itself when it reaches that point for
the first or the Nth time. Each verb of the store that writes has three more points: begun, written (before the commit)
and committed. docs/failpoints.md lists all points.
"""

import os
import signal
import threading
from collections.abc import Callable

POINTS = (
    "upload.opened",
    "upload.chunk_written",
    "upload.complete",
    "upload.checked",
    "upload.synced",
    "blob.renamed",
    "blob.folder_synced",
    "journal.written",
    "journal.synced",
    "blob.stored",
    "journal.settled",
    "object.part_put",
    "object.parts_marked",
    "object.put",
    "update.inserted",
    "update.logged",
    "round.closed",
    "round.opened",
    "round.taken_over",
    "privacy.charged",
    "update.accepted",
    "update.replying",
    "aggregation.found",
    "aggregation.computed",
    "aggregation.adopted",
    "version.inserted",
    "aggregation.committed",
    "aggregation.reopened",
    "deadline.fired",
    "deadline.judged",
    "replica.joined",
    "replica.told",
    "replica.given_up",
    "start.claimed",
    "start.swept",
    "start.settled",
    "start.judged",
    "start.recovered",
    "start.bound",
)
VARIABLE = "FEDROUND_FAILPOINT"


class Kill:
    """Kills the process at one point."""

    def __init__(self, setting: str) -> None:
        """Parses a setting: NAME or NAME:N."""
        self._name, _, count = setting.partition(":")
        self._left = int(count or 1)
        # Points are reached in the threads of the store, too.
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        """Kills the process if this is the point, reached for the Nth time."""
        if name == self._name:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)


_listener: Callable[[str], None] | None = Kill(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def listen(listener: Callable[[str], None] | None) -> None:
    """Sets the function that is called with the name of each point that is reached; None removes it."""
    global _listener
    _listener = listener


def reached(name: str) -> None:
    """Marks a point; without a listener it costs one comparison."""
    if _listener is not None:
        _listener(name)
