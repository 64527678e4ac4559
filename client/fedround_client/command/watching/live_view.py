"""The loop of the live view: draws what is observed, and the clocks once a second."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType

import typer
from rich.console import Console, Group
from rich.live import Live

from fedround_client.client import Client
from fedround_client.command.event_lines import EventLines
from fedround_client.command.watching.situation import Situation
from fedround_client.command.watching.view import View
from fedround_client.observer import Observation, Observer

CLOCK_SECONDS = 1.0
"""The view is drawn at least so often."""
FRAME_SECONDS = 0.1
"""The view is drawn at most so often."""

_SDK = logging.getLogger("fedround_client")


def show_live(client: Client, training_id: str, console: Console) -> bool:
    """Shows a training on the whole screen until its last event.

    Returns:
        Whether the training has ended; else the caller was removed from it, and sees no more events.

    Raises:
        FedroundError: Its events cannot be read.
    """
    observations: SimpleQueue[Observation] = SimpleQueue()
    training = client.get_training(training_id)
    situation, view = Situation(training), View(is_ascii=not console.encoding.lower().startswith("utf"))
    describe = EventLines(client, several=False, is_short=True).line
    observer = Observer(client._rpc, training, describe, observations)
    try:
        with _quiet(), _ends_on_sigterm(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                lines = view.lines(situation, console.width, console.height, time.time())
                live.update(Group(*lines), refresh=True)
                for item in _next(observations, time.monotonic() + FRAME_SECONDS):
                    if isinstance(item, Exception):
                        raise item
                    if item is None:
                        return situation.end is not None
                    situation.add(item, time.time())
    finally:
        observer.close()


def _next(observations: SimpleQueue[Observation], frame: float) -> Iterator[Observation]:
    """Yields what is observed before the next frame; waits for the first observation until the clocks change."""
    with suppress(Empty):
        yield observations.get(timeout=CLOCK_SECONDS)
        while True:
            yield observations.get(timeout=max(0.0, frame - time.monotonic()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps messages of the SDK away from the screen: the view says that the server does not answer."""
    silent, propagate = logging.NullHandler(), _SDK.propagate
    _SDK.addHandler(silent)
    _SDK.propagate = False
    try:
        yield
    finally:
        _SDK.removeHandler(silent)
        _SDK.propagate = propagate


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block like Ctrl-C does, so that the terminal is restored."""

    def end(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
