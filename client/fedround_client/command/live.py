"""What the SDK does and waits for, shown while a command waits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedround_client.command.output import echo, live_line

_SDK = logging.getLogger("fedround_client")


@contextmanager
def live_messages(text: str) -> Iterator[None]:
    """Shows the SDK's messages on stderr during the block: on a terminal as one line that changes, else as lines.

    Args:
        text: What the line says before the first message.
    """
    with live_line(text) as say:
        handler = _Handler(say)
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


class _Handler(logging.Handler):
    """Prints messages; with a function that replaces the line, one of the level INFO replaces the one before it."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a message."""
        text = record.getMessage()
        if self._say is not None and record.levelno == logging.INFO:
            self._say(text)
        else:
            echo(text, err=True)
