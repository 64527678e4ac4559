"""The JSON of a safetensors header, parsed one tensor at a time.

Python's JSON scanner holds the interpreter lock until it is done: a crafted header of 4 MiB would block the event loop
for 0.4 s, even from a thread. Between two tensors other threads can run.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from fedround_server.domain.errors import ModelFormat

METADATA = "__metadata__"
MAX_ENTRY = 2048
"""Characters of one tensor's description; sixteen dimensions and two offsets take 400."""
SPACE = re.compile(r"[ \t\n\r]*")


def read_header(header: bytes, limit: int) -> dict[str, Any]:
    """Parses the descriptions of tensors, by name and without the metadata.

    Args:
        header: The JSON text.
        limit: How many tensors it may describe, and how many entries its metadata may have.

    Raises:
        ModelFormat: It is malformed, or describes more.
    """
    tensors = _read_entries(header, limit)
    tensors.pop(METADATA, None)
    if len(tensors) > limit:
        raise _too_many(limit)
    return tensors


def read_metadata(header: bytes) -> dict[str, str]:
    """Returns the metadata of a header that was accepted; empty if it has none."""
    metadata: dict[str, str] = _read_entries(header, len(header)).get(METADATA, {})
    return metadata


def _read_entries(header: bytes, limit: int) -> dict[str, Any]:
    try:
        text = header.decode("utf-8")
        if not text.startswith("{"):
            raise ModelFormat("the safetensors header is not a JSON object")
        tensors, end = _read_object(text, 0, partial(_read_member, limit), limit + 1)
        if _skip(text, end) != len(text):
            raise ValueError("more behind the object")
    except (ValueError, RecursionError) as error:
        raise ModelFormat("the safetensors header is not valid JSON") from error
    return tensors


def _read_object(
    text: str, at: int, read_value: Callable[[str, str, int], tuple[Any, int]], most: int
) -> tuple[dict[str, Any], int]:
    """Parses an object member by member; returns it and where it ends."""
    found: dict[str, Any] = {}
    at = _skip(text, at + 1)
    if text.startswith("}", at):
        return found, at + 1
    while True:
        name, at = _read_string(text, at)
        at = _skip(text, at)
        if not text.startswith(":", at):
            raise ValueError("no colon")
        value, at = read_value(name, text, _skip(text, at + 1))
        if name in found:
            raise ModelFormat("the safetensors header names something twice")
        if len(found) == most:
            raise _too_many(most - 1)
        found[name] = value
        at = _skip(text, at)
        if text.startswith("}", at):
            return found, at + 1
        if not text.startswith(",", at):
            raise ValueError("no comma")
        at = _skip(text, at + 1)


def _read_member(limit: int, name: str, text: str, at: int) -> tuple[Any, int]:
    if name == METADATA:
        if not text.startswith("{", at):
            raise ModelFormat("the safetensors header's metadata is not a JSON object")
        # Its values are strings, as in the reference implementation.
        return _read_object(text, at, lambda _, text, at: _read_string(text, at), limit + 1)
    piece = text[at : at + MAX_ENTRY]
    try:
        value, length = DECODER.raw_decode(piece)
    except ValueError as error:
        if at + MAX_ENTRY >= len(text):
            raise
        raise ModelFormat(
            f"the safetensors header describes tensor {name[:80]!r} in more than {MAX_ENTRY} characters, or in no"
            " valid JSON"
        ) from error
    return value, at + length


def _read_string(text: str, at: int) -> tuple[str, int]:
    if not text.startswith('"', at):
        raise ValueError("no string")
    value, end = DECODER.raw_decode(text, at)
    return value, end


def _skip(text: str, at: int) -> int:
    space = SPACE.match(text, at)
    return at if space is None else space.end()


def _too_many(limit: int) -> ModelFormat:
    return ModelFormat(f"the safetensors header describes more than {limit} tensors")


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ModelFormat("the safetensors header names something twice")
    return found


def _reject_fraction(text: str) -> NoReturn:
    raise ModelFormat(f"the safetensors header contains {text[:40]}, which is no acceptable shape and no offset")


def _parse_integer(text: str) -> int:
    # The reference implementation takes it for a fraction, and could not read the file.
    return _reject_fraction(text) if text == "-0" else int(text)


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(text)


DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_duplicates,
    parse_float=_reject_fraction,
    parse_int=_parse_integer,
    parse_constant=_reject_constant,
)
