"""The lines of the live view: a picture of a situation that fits into a width and a height."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.text import Text

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE
from fedround.v1.round_pb2 import (
    ROUND_STATE_PENDING,
    WAIT_RULE_AFTER_MIN,
    Round,
    RoundParticipant,
)
from fedround.v1.training_pb2 import (
    GOAL_MINIMIZE,
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ERROR,
    TRAINING_STATE_INITIAL,
)
from fedround_client.command.quantities import duration_text, size_text
from fedround_client.command.training_summary import task
from fedround_client.command.watching.situation import Situation, seconds_of
from fedround_client.printable import one_line, printable
from fedround_client.progress import awaited_text
from fedround_client.round_number import planned_rounds, round_text

METRICS = 4
"""How many metrics are shown."""
REJECTED = 2
"""How many reasons of rejected updates are shown."""
LEAST_EVENTS = 3
"""How many events are shown at least, if there is room for anything else."""
NAME_WIDTH = 20
MAX_BAR = 40
MAX_SPARK = 30

_SPARKS = "▁▂▃▄▅▆▇█"
_ASCII_SPARKS = "_.-=+*#@"


class View:
    """Draws situations."""

    def __init__(self, *, is_ascii: bool = False) -> None:
        """Creates a view.

        Args:
            is_ascii: Whether the terminal shows ASCII only.
        """
        self._full, self._empty = ("#", ".") if is_ascii else ("━", "─")
        self._sparks = _ASCII_SPARKS if is_ascii else _SPARKS

    def lines(self, situation: Situation, width: int, height: int, now: float) -> list[Text]:
        """Returns at most `height` lines of at most `width` cells.

        Args:
            situation: What is known.
            width: Cells in a line.
            height: Lines.
            now: Unix time in seconds.
        """
        head = list(_head(situation, now))
        if situation.training.state != TRAINING_STATE_INITIAL:
            head.append(self._bar(situation, width))
        metrics = list(self._metrics(situation, width))
        rejected = list(_rejected(situation.current))
        # Three sections have an empty line before them.
        room = max(0, height - len(head) - len(metrics) - len(rejected) - 3)
        people = list(self._people(situation, width, max(1, room - LEAST_EVENTS), now))
        events = (
            [Text(printable(line)) for line in situation.lines][-max(0, room - len(people)) :]
            if room > len(people)
            else []
        )
        shown = head
        for section in (people + rejected, metrics, events):
            if section:
                shown = [*shown, Text(), *section]
        for line in shown:
            line.truncate(width, overflow="ellipsis")
        return shown[:height]

    def _bar(self, situation: Situation, width: int) -> Text:
        arrived, expected = situation.arrived
        noun = "reports" if situation.kind == ROUND_KIND_EVALUATE else "updates"
        # Nothing is said of a round that has not been read yet.
        text = f"{arrived} of {expected} {noun}" if expected else ""
        if situation.current is not None and situation.current.state == ROUND_STATE_PENDING:
            return Text(f"waiting for {one_line(awaited_text(situation.current))}", "yellow")
        if situation.is_aggregating:
            text += ", aggregating"
        cells = max(5, min(MAX_BAR, width - len(text) - 2))
        return Text.assemble(self._meter(arrived, expected, cells), "  ", text)

    def _meter(self, done: float, total: float, cells: int) -> Text:
        full = min(cells, math.floor(cells * done / total)) if total else 0
        return Text.assemble((self._full * full, "green"), (self._empty * (cells - full), "bright_black"))

    def _people(self, situation: Situation, width: int, room: int, now: float) -> Iterator[Text]:
        """Yields a line for each participant whose update or report is missing, as many as fit."""
        missing, total = situation.missing, situation.num_missing
        names = _width(one.name for one in missing)
        fits = room if total <= room else room - 1
        for one in missing[: max(0, fits)]:
            yield Text.assemble("  ", _cell(one.name, names), "  ", self._doing(situation, one, width, now))
        hidden = total - min(len(missing), max(0, fits))
        if hidden > 0 and (missing or total):
            yield Text(f"  and {hidden:,} more", "bright_black")

    def _doing(self, situation: Situation, one: RoundParticipant, width: int, now: float) -> Text:
        """Returns what a participant does whose update or report is missing, or why it will not come."""
        if one.HasField("failure"):
            message = f": {one.failure.message}" if one.failure.message else ""
            verb = "absent" if one.failure.reason == "ABSENT" else f"failed: {one.failure.reason}"
            return Text(one_line(f"{verb}{message}"), "red")
        if one.uploaded_bytes:
            return self._upload(situation, one, width)
        if one.subscribed:
            expected = seconds_of(one.forecast_arrive_time)
            when = f", expected in {duration_text(expected - now)}" if expected > now else ""
            return Text(f"connected{when}")
        seen = seconds_of(one.last_seen_time)
        return Text(f"last seen {duration_text(now - seen)} ago" if seen else "never connected", "yellow")

    def _upload(self, situation: Situation, one: RoundParticipant, width: int) -> Text:
        size, upload = situation.update_bytes, situation.uploads.get(one.user_id)
        speed = f", {size_text(upload.speed)}/s" if upload is not None and upload.speed else ""
        stalled = "" if one.subscribed else ", interrupted"
        if size is None or one.uploaded_bytes > size:
            return Text(f"uploading, {size_text(one.uploaded_bytes)} arrived{speed}{stalled}", "cyan")
        percent = one.uploaded_bytes * 100 // size
        meter = self._meter(one.uploaded_bytes, size, 10) if width >= 70 else Text()
        text = f"{' ' if meter else ''}uploading {percent} % of {size_text(size)}{speed}{stalled}"
        return Text.assemble(meter, (text, "cyan"))

    def _metrics(self, situation: Situation, width: int) -> Iterator[Text]:
        """Yields a line for each metric: the latest value, the best one, and how it went."""
        found, selection = situation.shown_metrics, situation.training.spec.selection
        wanted = [name for name in (selection.metric, *situation.training.spec.metric_names) if name in found]
        names = list(dict.fromkeys([*wanted, *sorted(found)]))[:METRICS]
        cells = _width(names)
        for name in names:
            points = found[name]
            version, value = points[-1]
            text = f"  {_cell(name, cells)}  {value:<10.4g} version {version}"
            if name == selection.metric:
                choose = min if selection.goal == GOAL_MINIMIZE else max
                best_version, best = choose(reversed(points), key=lambda point: point[1])
                text += f", best {best:.4g} at version {best_version}"
            spark = sparkline([value for _, value in points], min(MAX_SPARK, width - cell_len(text) - 2), self._sparks)
            yield Text.assemble(text, "  ", (spark, "cyan"))
        if len(found) > METRICS:
            yield Text(f"  and {len(found) - METRICS} more metrics", "bright_black")


def _width(names: Iterable[str]) -> int:
    """Returns the cells of a column of names."""
    return min(NAME_WIDTH, max((cell_len(one_line(name)) for name in names), default=0))


def _cell(name: str, cells: int) -> str:
    """Returns a name that takes exactly so many cells; letters of some scripts take two."""
    text = Text(one_line(name))
    text.truncate(cells, overflow="ellipsis", pad=True)
    return text.plain


def _head(situation: Situation, now: float) -> Iterator[Text]:
    training, current = situation.training, situation.current
    yield Text.assemble((one_line(training.spec.name) or training.training_id, "bold"), "  ", _state(situation, now))
    if training.state == TRAINING_STATE_INITIAL:
        yield Text(f"{training.num_participants} participants; `fedround training start` opens the first round")
        return
    number = round_text(situation.number, planned_rounds(training.spec))
    attempt = f", attempt {current.attempt} of {current.max_attempts}" if current and current.attempt > 1 else ""
    version = f"version {situation.version} of {training.spec.target_num_updates}"
    yield Text(f"{number}: {task(situation.kind)}{attempt}; {version}")
    if times := ", ".join(_round_times(situation, now)):
        yield Text(times)


def _state(situation: Situation, now: float) -> Text:
    training = situation.training
    if situation.unreachable:
        return Text(f"reconnecting: {one_line(situation.unreachable)}", "bold yellow")
    if training.state == TRAINING_STATE_ERROR:
        return Text(one_line(f"failed: {training.error.reason}: {training.error.message}"), "bold red")
    if training.state == TRAINING_STATE_COMPLETED:
        return Text("stopped by its actor" if training.stopped else "completed", "bold green")
    if training.state == TRAINING_STATE_INITIAL:
        return Text("not started", "yellow")
    since = duration_text(now - seconds_of(training.start_time))
    if training.stopped:
        return Text(f"started {since} ago, stops after this round", "yellow")
    if training.paused:
        return Text(f"started {since} ago, paused", "yellow")
    return Text.assemble((f"running for {since}", "green"), _forecast(situation, now))


def _forecast(situation: Situation, now: float) -> str:
    """Returns when the training will end if its versions take as long as the last ones; empty if that is not known."""
    forecast = situation.forecast_end(now)
    if forecast is None:
        return ""
    end, each = forecast
    at_most = " at the latest" if situation.training.spec.selection.patience else ""
    return f", ends about {clock(end, now)}{at_most} ({duration_text(each)} a version)"


def _round_times(situation: Situation, now: float) -> Iterator[str]:
    """Yields how long the round has been open, and when it will end."""
    current = situation.current
    if current is None:
        if situation.open_time is not None and not situation.is_done:
            yield f"open for {duration_text(now - situation.open_time)}"
        return
    if current.state == ROUND_STATE_PENDING:
        return
    yield f"open for {duration_text(now - seconds_of(current.open_time))}"
    if current.wait_rule == WAIT_RULE_AFTER_MIN:
        yield f"enough arrived, closes within {duration_text(seconds_of(current.wait_end_time) - now)}"
    elif (expected := seconds_of(current.forecast_end_time)) > now:
        yield f"ends in about {duration_text(expected - now)}"
    if current.HasField("deadline"):
        yield f"deadline in {duration_text(seconds_of(current.deadline) - now)}"


def _rejected(current: Round | None) -> Iterator[Text]:
    """Yields the reasons for which updates of the round were rejected."""
    found = [] if current is None else list(current.rejected_updates)
    for rejected in found[:REJECTED]:
        who = [one_line(one.name) for one in current.participants if _has(one, rejected.reason)] if current else []
        names = f" ({', '.join(who[:3])}{', ...' if len(who) > 3 else ''})" if who else ""
        text = one_line(f"rejected {rejected.count}: {rejected.reason}{names}: {rejected.message}")
        yield Text(f"  {text}", "red")
    if len(found) > REJECTED:
        yield Text(f"  and {len(found) - REJECTED} more reasons of rejected updates", "red")


def _has(one: RoundParticipant, reason: str) -> bool:
    return any(rejected.reason == reason for rejected in one.rejected_updates)


def sparkline(values: Sequence[float], cells: int, sparks: str = _SPARKS) -> str:
    """Returns numbers as bars, the last ones if there are more than cells; a number that is not finite is a space."""
    shown = values[-cells:] if cells > 0 else []
    finite = [value for value in shown if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    top = len(sparks) - 1

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return " "
        return sparks[round((value - low) / (high - low) * top)] if high > low else sparks[0]

    return "".join(map(bar, shown))


def clock(moment: float, now: float) -> str:
    """Returns a moment in local time; with its date if it is not today."""
    local = datetime.fromtimestamp(moment).astimezone()
    is_today = local.date() == datetime.fromtimestamp(now).astimezone().date()
    return f"{local:%H:%M:%S}" if is_today else f"{local:%Y-%m-%d %H:%M}"
