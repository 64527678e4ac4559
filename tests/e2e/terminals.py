"""Commands on a pseudo terminal, and what is on its screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

HOME = "\x1b[H"
LEAVE_SCREEN = "\x1b[?1049l"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A `fedround` command on a terminal; its `with` block is the time in which it runs."""

    def __init__(self, address: str, token: str, *arguments: str, width: int = 80, height: int = 24) -> None:
        self._master, slave = pty.openpty()
        self.resize(width, height)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
        more = {"PYTHONPATH": ":".join(filter(None, sys.path)), "FEDROUND_TOKEN": token, "TERM": "xterm-256color"}
        environment = {**inherited, **more, "LANG": "C.UTF-8"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedround_client", "--server", address, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            # A session of its own, whose terminal this is: Ctrl-C reaches it as a signal.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._output = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._master)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    @property
    def output(self) -> str:
        """All that was written, with control sequences."""
        return self._output.decode(errors="replace")

    @property
    def frame(self) -> list[str]:
        """The lines of the last view that was drawn as a whole; empty before the first one."""
        frames = self.output.split(LEAVE_SCREEN)[0].split(HOME)
        # The last one may be on its way.
        return [line.rstrip() for line in CONTROL.sub("", frames[-2]).splitlines()] if len(frames) > 2 else []

    def until(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Waits for a view that fulfils a condition; the test's own timeout is the limit."""
        while not condition(frame := self.frame):
            assert self._process.poll() is None, self.output
            time.sleep(0.02)
        return frame

    def end(self) -> tuple[int, str]:
        """Waits for the end of the command; returns its exit code, and what it wrote behind the view."""
        code = self._process.wait()
        self._reader.join()
        return code, CONTROL.sub("", self.output.rpartition(LEAVE_SCREEN)[2])

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self._output += data
