"""Named points in the commit protocol at which tests end the server with SIGKILL.

`FEDROUND_FAILPOINT=NAME` or `NAME:N` in the environment has the process kill itself when it reaches that point for the
first or the Nth time. Each verb of the store that changes something has three points besides those named here: begun,
written (all but the commit) and committed. docs/failpoints.md lists them all.
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
    "update.inserted",
    "update.logged",
    "round.closed",
    "round.opened",
    "update.accepted",
    "update.replying",
    "aggregation.found",
    "aggregation.computed",
    "aggregation.adopted",
    "version.inserted",
    "aggregation.committed",
    "deadline.fired",
    "deadline.judged",
    "start.swept",
    "start.judged",
    "start.recovered",
    "start.bound",
)
VARIABLE = "FEDROUND_FAILPOINT"


class Kill:
    """Kills the process at a point."""

    def __init__(self, setting: str) -> None:
        """Reads where.

        Args:
            setting: NAME or NAME:N.
        """
        self._name, _, count = setting.partition(":")
        self._left = int(count or 1)
        # The store's threads reach points too.
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        """Is told of every point that is reached."""
        if name == self._name:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)


_listener: Callable[[str], None] | None = Kill(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def listen(listener: Callable[[str], None] | None) -> None:
    """Has somebody told of every point that is reached; None ends that."""
    global _listener
    _listener = listener


def reached(name: str) -> None:
    """Marks a point; costs a comparison when nobody listens."""
    if _listener is not None:
        _listener(name)
