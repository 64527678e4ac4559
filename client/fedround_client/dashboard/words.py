"""How pages write values: states, times, sizes and numbers. Templates call these as filters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from markupsafe import Markup, escape

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, RoundKind
from fedround.v1.round_pb2 import (
    ROUND_STATE_ABANDONED,
    ROUND_STATE_AGGREGATING,
    ROUND_STATE_DONE,
    ROUND_STATE_OPEN,
    ROUND_STATE_PENDING,
    RoundParticipant,
    RoundState,
    UpdateReport,
)
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ERROR,
    TRAINING_STATE_INITIAL,
    Training,
)
from fedround.v1.user_pb2 import Role, User
from fedround_client.command.output import enum_name
from fedround_client.command.quantities import duration_text, size_text
from fedround_client.command.training_summary import task
from fedround_client.printable import printable

ENDED = (TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR)
_ROUND_STATES = {
    ROUND_STATE_OPEN: ("open", "running"),
    ROUND_STATE_AGGREGATING: ("aggregating", "running"),
    ROUND_STATE_DONE: ("done", "good"),
    ROUND_STATE_ABANDONED: ("abandoned", "bad"),
    ROUND_STATE_PENDING: ("waiting to open", "waiting"),
}
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?\+00:00)")
_SDK_ATTRIBUTES = ("platform", "python", "sdk")


def training_state(training: Training) -> tuple[str, str]:
    """Returns the state of a training in words, and the class of its colour."""
    if training.state == TRAINING_STATE_INITIAL:
        return "not started", "idle"
    if training.state == TRAINING_STATE_ERROR:
        return "failed", "bad"
    if training.state == TRAINING_STATE_COMPLETED:
        return ("stopped" if training.stopped else "completed"), "good"
    if training.stopped:
        return "stopping", "waiting"
    return ("paused", "waiting") if training.paused else ("running", "running")


def round_state(state: RoundState.ValueType) -> tuple[str, str]:
    """Returns the state of a round in words, and the class of its colour."""
    return _ROUND_STATES.get(state, ("unknown", "idle"))


def round_kind(kind: RoundKind.ValueType) -> str:
    """Returns what a round is for."""
    return task(kind)


def results(kind: RoundKind.ValueType) -> str:
    """Returns what participants send in a round."""
    return "reports" if kind == ROUND_KIND_EVALUATE else "updates"


def participant_state(one: RoundParticipant, state: RoundState.ValueType) -> tuple[str, str]:
    """Returns the state of a participant in a round in words, and the class of its colour.

    Args:
        one: The participant.
        state: The state of the round.
    """
    if one.HasField("failure"):
        return ("absent" if one.failure.reason == "ABSENT" else "failed"), "bad"
    if one.arrived:
        return "arrived", "good"
    if state in (ROUND_STATE_DONE, ROUND_STATE_ABANDONED):
        return "nothing sent", "idle"
    if one.uploaded_bytes:
        return "uploading", "running"
    return ("working", "running") if one.subscribed else ("not connected", "waiting")


def when(moment: Timestamp, shown: str = "ago") -> str:
    """Returns a time as an element, which the browser shows as the time from now; empty if it is not set.

    Args:
        moment: The time.
        shown: "until" for a forecast, which is never in the past.
    """
    if not (moment.seconds or moment.nanos):
        return Markup("")
    try:
        return _element(datetime.fromtimestamp(moment.seconds, UTC), shown)
    except (OverflowError, ValueError, OSError):
        return Markup("?")


def with_times(text: str) -> str:
    """Returns a text of the server with the times in it as elements, which the browser shows in its own time zone."""
    # The parts with odd numbers are those that match.
    parts = _TIME.split(text)
    return Markup("").join(_clock(part) if index % 2 else escape(safe(part)) for index, part in enumerate(parts))


def _clock(text: str) -> Markup:
    try:
        return _element(datetime.fromisoformat(text), "clock")
    except ValueError:
        return escape(text)


def _element(time: datetime, shown: str) -> Markup:
    text = f"{time:%Y-%m-%d %H:%M:%S} UTC"
    element = Markup('<time datetime="{}" title="{}" data-shown="{}">{}</time>')
    return element.format(time.isoformat(), text, shown, text)


def seconds_between(begin: Timestamp, end: Timestamp) -> float | None:
    """Returns the seconds between two times; None if one of them is not set."""
    if not begin.seconds or not end.seconds:
        return None
    return end.seconds - begin.seconds + (end.nanos - begin.nanos) / 1e9


def length(seconds: float | None) -> str:
    """Returns a number of seconds for people, such as "40 ms", "1.4 s" or "3 min 5 s"; empty for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration_text(seconds)


def duration(value: Duration) -> str:
    """Returns a Duration for people."""
    return length(value.seconds + value.nanos / 1e9)


def number(value: float) -> str:
    """Returns a number for people: whole numbers in groups of three digits, others with four significant digits."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def figure(report: UpdateReport, name: str) -> str:
    """Returns what the aggregation found out about an update, by the name of the field; empty if it is not set."""
    if not has_figure(report, name):
        return ""
    value = getattr(report, name)
    return ("yes" if value else "no") if isinstance(value, bool) else number(value)


def has_figure(report: UpdateReport, name: str) -> bool:
    """Returns whether a report has an optional field, by its name."""
    return any(field.name == name for field, _ in report.ListFields())


def role_text(user: User) -> str:
    """Returns the role of a user in words."""
    return enum_name(Role, user.role).lower()


def attributes_text(attributes: Mapping[str, str]) -> str:
    """Returns what a participant says of itself, what it chose itself first."""
    names = sorted(attributes, key=lambda name: (name in _SDK_ATTRIBUTES, name))
    return ", ".join(f"{name} {attributes[name]}" for name in names)


def lines(text: str) -> Iterator[str]:
    """Yields the lines of a text by a user, so that its line breaks stay."""
    yield from text.splitlines()


def sentence(text: str) -> str:
    """Returns a text that begins with a capital letter: messages of the server do not."""
    return text[:1].upper() + text[1:]


def union(dictionaries: Iterable[Any]) -> list[str]:
    """Returns all keys of some dictionaries, sorted."""
    return sorted({key for one in dictionaries for key in one})


def safe(value: Any) -> Any:
    """Makes control and format characters in texts visible; templates escape the rest.

    Names could otherwise turn the direction of the text around them.
    """
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


FILTERS = {
    "attributes_text": attributes_text,
    "duration": duration,
    "figure": figure,
    "length_of": length,
    "lines": lines,
    "number": number,
    "participant_state": participant_state,
    "results": results,
    "role": role_text,
    "round_kind": round_kind,
    "round_state": round_state,
    "sentence": sentence,
    "size": size_text,
    "training_state": training_state,
    "union": union,
    "when": when,
    "with_times": with_times,
}
