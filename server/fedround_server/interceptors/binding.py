"""Binds what a request is about to the log lines and to the span of its call."""

import re
from functools import cache
from typing import Any

import structlog
from google.protobuf.descriptor import Descriptor

from fedround_server.traces import Traces

IDS = ("training_id", "model_id")
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
"""What else a caller types into a field of an id is not logged: it may be anything, and long."""


def bind(message: Any, traces: Traces) -> None:
    """Binds training_id, round and model_id of a request, or of its spec, where it has them."""
    # Chunks of the codec have no descriptor, and at most a spec.
    spec = getattr(message, "spec", None)
    message = message if spec is None else spec
    descriptor = getattr(message, "DESCRIPTOR", None)
    if descriptor is None:
        return
    bound: dict[str, str | int] = {}
    for name in _fields(descriptor):
        value = getattr(message, name)
        if name in IDS:
            if UUID.fullmatch(value):
                bound[name] = value.lower()
        elif value or not descriptor.fields_by_name[name].has_presence or message.HasField(name):
            bound[name] = value
    if bound:
        structlog.contextvars.bind_contextvars(**bound)
        if traces.is_on:
            for name, value in bound.items():
                traces.annotate(name, value)


@cache
def _fields(descriptor: Descriptor) -> tuple[str, ...]:
    """Returns which of the fields a message has."""
    fields = descriptor.fields_by_name
    named = tuple(name for name in IDS if name in fields)
    # Of a round there is no knowing without its training.
    return (*named, "round") if "training_id" in named and "round" in fields else named
