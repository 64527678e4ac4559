"""Runs a module in a process that ends with its parent: `python -m fedround_client.embedded.parent_watchdog MODULE`.

The parent keeps the other end of standard input open and writes nothing to it. When the parent ends for any reason, the
pipe is closed, and the process sends SIGTERM to itself, and later SIGKILL to its whole session.
"""

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def main() -> None:
    """Runs the module named by the first argument, with the other arguments."""
    threading.Thread(target=_end_with_parent, name="parent watchdog", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
