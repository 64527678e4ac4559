"""What a check finds, and sizes and times for people."""

from dataclasses import dataclass
from typing import Literal

UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: What was checked.
        state: "fail" for what keeps a server from working; "note" for what may become a problem.
        found: What was found, and what to do about it.
    """

    check: str
    state: Literal["ok", "note", "fail"]
    found: str


def size(count: float) -> str:
    """Returns a number of bytes in its largest unit, such as 1.5 GB."""
    for unit in UNITS[:-1]:
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {UNITS[-1]}"
