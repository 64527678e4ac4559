"""Pages of lists: their size, their tokens, and how many entries fit into a message."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message

from fedround_server.domain.errors import FieldInvalid
from fedround_server.services import fields

Item = TypeVar("Item")
M = TypeVar("M", bound=Message)

DEFAULT_SIZE = 50
MAX_SIZE = 1000
FOREIGN = "is not a next_page_token of this list: leave it empty for the first page"
MAX_TOKEN = 4096
"""In characters; the longest name takes some 3,200."""
MAX_BYTES = 3 << 19
"""1.5 MiB for a list: a message of 2 MiB has other fields, too."""
FRAME = 8
"""The most that the tag and the length of a field take, in bytes."""


def fitting(items: Iterable[Item], encode: Callable[[Item], M]) -> list[M]:
    """Encodes as many of the first items as fit into a message, and at least one if there is one."""
    messages: list[M] = []
    total = 0
    for item in items:
        message = encode(item)
        total += message.ByteSize() + FRAME
        if messages and total > MAX_BYTES:
            break
        messages.append(message)
    return messages


def cut(
    found: Sequence[Item], size: int, encode: Callable[[Item], M], token: Callable[[Item], str]
) -> tuple[list[M], str]:
    """Makes a page of entries that fit into a message.

    Args:
        found: The entries: more than `size` if the list goes on.
        size: The requested number of entries.
        encode: Encodes an entry.
        token: Returns the token of the page behind an entry.

    Returns:
        The messages, and the token of the next page; empty if there is none.
    """
    page = fitting(found[:size], encode)
    return page, token(found[len(page) - 1]) if len(found) > len(page) else ""


def parse_size(value: int, default: int = DEFAULT_SIZE) -> int:
    """Returns the number of entries of a page: the default for 0, and at most MAX_SIZE.

    Raises:
        FieldInvalid: It is negative.
    """
    if value < 0:
        raise FieldInvalid("page_size", f"is {value}; must not be negative")
    return min(value or default, MAX_SIZE)


def format_token(*position: str | int) -> str:
    """Returns the opaque token of a position where a page starts."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def parse_token(value: str, *kinds: type[str] | type[int]) -> tuple[Any, ...] | None:
    """Returns the position that a page token stands for, with parts of these types; None for the first page.

    Raises:
        FieldInvalid: It is not a token of this list.
    """
    if not value:
        return None
    try:
        if len(value) > MAX_TOKEN:
            raise ValueError("too long")
        position = json.loads(base64.b64decode(value.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        position = None
    fits = isinstance(position, list) and len(position) == len(kinds)
    if not fits or not all(_is_part(part, kind) for part, kind in zip(position, kinds, strict=True)):
        raise FieldInvalid("page_token", FOREIGN)
    return tuple(position)


def format_position(time: datetime, id_: str) -> str:
    """Returns the page token behind an entry, in a list that is ordered by time and id."""
    return format_token(format_micros(time), id_)


def format_micros(time: datetime) -> int:
    """Returns a time as a part of a token: in microseconds."""
    return round(time.timestamp() * 1_000_000)


def parse_micros(value: int) -> datetime:
    """Returns the time that `format_micros` made a part of a token of.

    Raises:
        FieldInvalid: There is no such time.
    """
    try:
        return datetime.fromtimestamp(value / 1_000_000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise FieldInvalid("page_token", FOREIGN) from error


def parse_position(value: str) -> tuple[datetime, str] | None:
    """Returns the time and the id that a token of `format_position` stands for; None for the first page."""
    found = parse_token(value, int, str)
    if found is None:
        return None
    return parse_micros(found[0]), fields.parse_id("page_token", found[1])


def _is_part(part: Any, kind: type[str] | type[int]) -> bool:
    if type(part) is not kind:
        return False
    return 0 <= part < 1 << 62 if isinstance(part, int) else not fields.UNSTORABLE.search(part)
