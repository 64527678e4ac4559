"""Nested values as names and texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields the values in dicts and lists with their names, such as "cohort.size" or "client_ids.0".

    Args:
        value: A value of JSON.
        name: Its name; empty for the outermost dict.
    """
    if value == {}:  # a message without fields, like FedAvg
        yield name, "{}"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}.{index}")
    else:
        yield name, str(value)
