"""Sizes and durations with units, as people write them: 2GiB, 30s."""

import re
from decimal import Decimal

SIZES = {"B": 1, **{f"{prefix}iB": 1 << 10 * power for power, prefix in enumerate("KMGT", 1)}}
SIZES |= {f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)}
DURATIONS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86_400),
}
QUANTITY = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)")


def parse_size(text: str) -> int:
    """Returns the bytes of a size with a unit: B, KiB, MiB, GiB, TiB, or kB, MB, GB, TB.

    Raises:
        ValueError: It is no such size, or not a whole number of bytes.
    """
    size = _parse(text, {unit: Decimal(factor) for unit, factor in SIZES.items()}, "2GiB, or a number of bytes")
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_duration(text: str) -> float:
    """Returns the seconds of a duration with a unit: ms, s, min, h or d.

    Raises:
        ValueError: It is no such duration.
    """
    return float(_parse(text, DURATIONS, "30s, or a number of seconds"))


def show_size(size: int) -> str:
    """Returns a size with the largest unit of which it is a multiple."""
    unit = next(unit for unit in ("TiB", "GiB", "MiB", "KiB", "B") if (size and size % SIZES[unit] == 0) or unit == "B")
    return f"{size // SIZES[unit]} {unit}"


def _parse(text: str, units: dict[str, Decimal], example: str) -> Decimal:
    found = QUANTITY.fullmatch(text.strip())
    if found is None or found[2] not in units:
        raise ValueError(f"{text!r} is not understood: write for example {example}; the units are {', '.join(units)}")
    return Decimal(found[1]) * units[found[2]]
