"""Metrics: numbers, which the server averages, and texts and lists, which it keeps for the actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from fedround.v1.event_pb2 import MetricList

MetricValue: TypeAlias = float | str | Sequence[float]
"""A number, a text, or a list of numbers; also numpy scalars, arrays of up to one dimension, and such tensors."""

MAX_METRICS = 1000
MAX_NAME = 100
"""Characters of a name."""
MAX_TEXT = 1000
"""Characters of a text."""
MAX_LIST = 1000
"""Numbers of a list."""
MAX_KEPT_BYTES = 64 << 10
"""Bytes of all texts in UTF-8, and of all lists with 8 bytes a number."""

ALLOWED = f"a metric is a number, a text of up to {MAX_TEXT} characters, or a list of up to {MAX_LIST} numbers"


@dataclass(frozen=True)
class Metrics:
    """Metrics by kind and name, as the messages of the API have them."""

    metrics: dict[str, float] = field(default_factory=dict)
    text_metrics: dict[str, str] = field(default_factory=dict)
    list_metrics: dict[str, MetricList] = field(default_factory=dict)


def split_metrics(values: Mapping[str, MetricValue] | None) -> Metrics:
    """Checks metrics, and divides them by their kinds.

    Raises:
        TypeError: A name or a value has another type; the message names the metric and what is allowed.
        ValueError: There are too many metrics, or a text or a list is too long.
    """
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise TypeError(f"The metrics are a {type(values).__name__}, not a dict: {ALLOWED}, by name.")
    if len(values) > MAX_METRICS:
        raise ValueError(
            f"There are {len(values)} metrics; at most {MAX_METRICS} are allowed. A list of up to {MAX_LIST} numbers is"
            " one metric."
        )
    split, kept_bytes = Metrics(), 0
    for name, value in values.items():
        _check_name(name)
        plain = _plain(value)
        if isinstance(plain, str):
            _check_length(name, len(plain), MAX_TEXT, "characters")
            kept_bytes += _utf8_size(f"Metric {name!r}", plain)
            split.text_metrics[name] = plain
        elif isinstance(plain, (list, tuple)):
            _check_length(name, len(plain), MAX_LIST, "numbers")
            kept_bytes += 8 * len(plain)
            split.list_metrics[name] = MetricList(values=[_number(name, item) for item in plain])
        else:
            split.metrics[name] = _number(name, plain)
    if kept_bytes > MAX_KEPT_BYTES:
        raise ValueError(
            f"The texts and lists among the metrics have {kept_bytes} bytes; at most {MAX_KEPT_BYTES} fit."
        )
    return split


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"The name {name!r} of a metric is a {type(name).__name__}, not a string.")
    if not name.strip() or len(name) > MAX_NAME:
        raise ValueError(
            f"The name {name[:MAX_NAME]!r} of a metric has {len(name)} characters; 1 to {MAX_NAME} are allowed."
        )
    _utf8_size(f"The name {name!r} of a metric", name)


def _utf8_size(what: str, text: str) -> int:
    """Returns the bytes of a text, after a check that the server can store it."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} has characters that UTF-8 does not have.") from error
    if b"\0" in encoded:
        raise ValueError(f"{what} contains NUL.")
    return len(encoded)


def _check_length(name: str, length: int, most: int, of: str) -> None:
    if length > most:
        raise ValueError(f"Metric {name!r} has {length} {of}; at most {most} are allowed.")


def _plain(value: Any) -> Any:
    """Returns an array or a tensor as a number or as a list, of lists if it has more dimensions."""
    if hasattr(value, "__array__") and not hasattr(value, "tolist"):
        value = np.asarray(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _number(name: str, value: Any) -> float:
    plain = _plain(value)
    if isinstance(plain, (str, bytes, bytearray)) or not (hasattr(plain, "__float__") or hasattr(plain, "__index__")):
        raise TypeError(f"Metric {name!r} has a value of the type {type(plain).__name__}: {ALLOWED}.")
    try:
        return float(plain)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"Metric {name!r} is not a number: {error}; {ALLOWED}.") from error
