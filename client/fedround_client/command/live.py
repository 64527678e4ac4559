"""What the SDK does and waits for, shown while a command waits."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from fedround_client.printable import printable

_SDK = logging.getLogger("fedround_client")


@contextmanager
def live_messages() -> Iterator[None]:
    """Shows the SDK's messages on stderr during the block: on a terminal as one line that changes, else as lines."""
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with _status(console) as status:
        handler = _Handler(console, status)
        level, propagate = _SDK.level, _SDK.propagate
        _SDK.addHandler(handler)
        _SDK.setLevel(logging.INFO)
        _SDK.propagate = False
        try:
            yield
        finally:
            _SDK.removeHandler(handler)
            _SDK.setLevel(level)
            _SDK.propagate = propagate


@contextmanager
def _status(console: Console) -> Iterator[Status | None]:
    if not sys.stderr.isatty():
        yield None
        return
    with console.status("Waiting") as status:
        yield status


class _Handler(logging.Handler):
    """Prints messages; with a status, one of the level INFO replaces the one before it."""

    def __init__(self, console: Console, status: Status | None) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a message."""
        text = printable(record.getMessage())
        if self._status is not None and record.levelno == logging.INFO:
            self._status.update(escape(text))
        else:
            self._console.print(text)
