"""Runs a module as a process that does not outlive its parent: `python -m fedround_client.demo.parent_watchdog MODULE ...`.

The parent keeps the other end of standard input open and writes nothing to it. When the parent is gone, however it
ended, the pipe is closed, and the process ends itself: politely at first, and after a while with its whole session.
"""

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 5.0
"""Seconds between asking and killing."""


def main() -> None:
    """Runs the module that the command line names, with the arguments behind it."""
    threading.Thread(target=_end_with_parent, name="leash", daemon=True).start()
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
