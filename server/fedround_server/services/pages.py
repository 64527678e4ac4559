"""Cuts lists into pages that fit into a message."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

Item = TypeVar("Item")
M = TypeVar("M", bound=Message)

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
