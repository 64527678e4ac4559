"""Checks of options."""

import math

from fedround_server.domain.aggregation import OptionInvalid

MAX_SEED = 1 << 53


def check_range(option: str, value: float, lowest: float, highest: float = math.inf, *, open_end: bool = False) -> None:
    """Checks that an option is finite and in a range, to which `highest` belongs unless `open_end`.

    Raises:
        OptionInvalid: It is not.
    """
    if math.isfinite(value) and lowest <= value and (value < highest if open_end else value <= highest):
        return
    wanted = f">= {lowest:g}"
    if not math.isinf(highest):
        wanted += f" and {'<' if open_end else '<='} {highest:g}"
    raise OptionInvalid(option, f"is {value}; must be finite and {wanted}")


def check_positive(option: str, value: float) -> None:
    """Checks that an option is finite and greater than 0.

    Raises:
        OptionInvalid: It is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise OptionInvalid(option, f"is {value}; must be finite and > 0")
