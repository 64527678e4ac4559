"""`fedround top`: what the server is doing, for its operator."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from itertools import islice
from typing import Annotated

import typer
from rich.live import Live

from fedround.v1.server_pb2 import ServerStatus
from fedround.v1.training_pb2 import TRAINING_STATE_ONGOING, TRAINING_STATE_SWAG_ROUND, Training
from fedround.v1.user_pb2 import ROLE_VIEWER
from fedround_client.client import Client
from fedround_client.command.output import Format, FormatOption, as_dict, echo, echo_json, stdout_console
from fedround_client.command.session import Session
from fedround_client.command.top_rates import DiskTrend, rates_between
from fedround_client.command.top_view import View
from fedround_client.errors import FedroundError
from fedround_client.training import TrainingRoleName

TRAININGS_SECONDS = 5.0
"""How old the list of running trainings may be."""
MAX_TRAININGS = 1000
"""How many of the newest trainings are looked at."""
FIRST_SECONDS = 1.0
"""How long the first interval is at most, so that something is shown soon."""
RUNNING = (TRAINING_STATE_ONGOING, TRAINING_STATE_SWAG_ROUND)


def top(
    context: typer.Context,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks at the server.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval, and end.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Show what the server is doing: rates, streams, disk, worker, database, and running trainings; until Ctrl-C.

    For admins and viewers. On a terminal it is a screen that changes, otherwise one line per interval; as JSON one
    object per line. An admin sees the running trainings that it created, a viewer all. Of several addresses, the first
    whose server answers is asked.
    """
    session = Session.of(context)
    live = form is Format.TABLE and sys.stdout.isatty()
    try:
        with ExitStack() as stack:
            clients = {one.server: stack.enter_context(one.client()) for one in session.of_each_address()}
            show = stack.enter_context(_shown(live=live and not once, form=form))
            for view in islice(_views(clients, interval), 1 if once else None):
                show(view)
    except KeyboardInterrupt:
        # That is how it ends.
        raise typer.Exit from None


def _views(clients: Mapping[str, Client], interval: float) -> Iterator[View]:
    """Yields what a server is doing, forever: of several, the first that answers, and the next one when it is gone.

    Args:
        clients: By address.
        interval: Seconds between two views.

    Raises:
        FedroundError: None has answered yet, or one has answered with an error that is not transient.
    """
    view: View | None = None
    while True:
        for address, client in clients.items():
            try:
                for view in _views_of(client, address, interval):
                    yield view
            except FedroundError as error:
                if not error.transient:
                    raise
                problem = error
        if view is None:
            raise problem
        yield replace(view, problem=f"reconnecting: {problem}")
        time.sleep(interval)


def _views_of(client: Client, address: str, interval: float) -> Iterator[View]:
    """Yields what a server is doing, until a call fails."""
    before = client.server_status()
    trainings, trend = _Trainings(client), DiskTrend()
    trend.add(before)
    pause = min(interval, FIRST_SECONDS)
    while True:
        time.sleep(pause)
        pause = interval
        now = client.server_status()
        running = trainings.running(now)
        trend.add(now)
        full_in = trend.until(now.disk.min_free_bytes)
        yield View(address, now, rates_between(before, now), full_in, running)
        before = now


class _Trainings:
    """The running trainings that the caller may see."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._role: TrainingRoleName = "VIEWER" if client.myself().role == ROLE_VIEWER else "ACTOR"
        self._found: list[Training] = []
        self._time = 0.0

    def running(self, status: ServerStatus) -> list[Training]:
        """Returns the running trainings; asks for them every few seconds at most."""
        if not status.running_trainings:
            return []
        if time.monotonic() - self._time > TRAININGS_SECONDS:
            newest = islice(self._client.trainings(self._role), MAX_TRAININGS)
            self._found = [one for one in newest if one.state in RUNNING]
            self._time = time.monotonic()
        return self._found


@contextmanager
def _shown(*, live: bool, form: Format) -> Iterator[Callable[[View], None]]:
    """Yields what shows a view: on a screen of its own if it is live, else as lines."""
    if live:
        with Live(console=stdout_console(), screen=True, auto_refresh=False) as screen:
            yield lambda view: screen.update(view, refresh=True)
    elif form is Format.JSON:
        yield _show_json
    elif sys.stdout.isatty():
        yield stdout_console().print
    else:
        yield lambda view: echo(view.problem or view.line())


def _show_json(view: View) -> None:
    if view.problem:
        echo_json({"problem": view.problem}, indent=None)
        return
    status = as_dict(view.status)
    trainings = [as_dict(one) for one in view.trainings]
    full_in = None if view.full_in is None else view.full_in.total_seconds()
    rates = asdict(view.rates)
    echo_json({"status": status, "rates": rates, "full_in_seconds": full_in, "trainings": trainings}, indent=None)
