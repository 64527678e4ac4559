"""Durations and sizes as texts for people, for commands and for the dashboard."""

from __future__ import annotations

from itertools import pairwise

_DURATIONS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def duration_text(seconds: float) -> str:
    """Returns a duration in its two largest units, such as "3 min 5 s"; a negative one is "0 s"."""
    whole = max(0, round(seconds))
    for (large, size), (small, smaller) in pairwise(_DURATIONS):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {large}{f' {rest} {small}' if rest else ''}"
    return f"{whole} s"


def size_text(num_bytes: float) -> str:
    """Returns a number of bytes in decimal units, such as "1.5 MB" (10^6 bytes to a megabyte)."""
    for unit in _SIZES:
        if num_bytes < 999.5 or unit == _SIZES[-1]:
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 99.5 else f"{num_bytes:.1f} {unit}"
