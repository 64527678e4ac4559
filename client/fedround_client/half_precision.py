"""Rounding of float32 to half precision: to the nearest number, or at random with exact expected values."""

from __future__ import annotations

from typing import Any

import numpy as np

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, np.dtype[Any]]

_F16_STEP = 2.0**-24
"""The distance of float16's subnormal numbers."""
_F16_NORMAL = 2.0**-14
"""The smallest normal number of float16."""


def round_to_half(values: Float32, dtype: str) -> Array | None:
    """Rounds float32 to the nearest number of a half precision, ties to even.

    Args:
        values: An array of any shape.
        dtype: "F16" or "BF16".

    Returns:
        An array of the same shape: float16, or uint16 with the bits of bfloat16. None if a value is not finite, or too
        large for the dtype.
    """
    if dtype == "F16":
        return _to_float16(values)
    bits = values.view("<u4")
    # The upper half, plus one if the lower half is above the middle, or at the middle and the upper half is odd.
    return _upper_halves(values, bits + (0x7FFF + ((bits >> 16) & 1)))


def round_to_half_at_random(values: Float32, dtype: str, random: np.random.Generator) -> Array | None:
    """Rounds float32 to one of the two neighbours in a half precision, so that the expected value is the number.

    The probability of a neighbour is the distance of the number from the other one, divided by theirs; numbers that the
    dtype has stay as they are (Croci et al., Stochastic rounding, Royal Society Open Science 9, 2022).

    Args:
        values: A flat array.
        dtype: "F16" or "BF16".
        random: Draws the random numbers.

    Returns:
        As `round_to_half`.
    """
    draws = random.bit_generator.random_raw(-(-len(values) // 4)).view("<u2")[: len(values)]
    bits = values.view("<u4")
    if dtype == "BF16":
        # The carry of the sum is as probable as the lower half is large.
        return _upper_halves(values, bits + draws)
    # As for bfloat16, with the 13 bits that float16 does not have.
    rounded = ((bits + (draws & 0x1FFF)) & np.uint32(0xFFFFE000)).view("<f4")
    small = np.abs(values) < _F16_NORMAL
    if small.any():
        steps = values[small] / _F16_STEP
        rounded[small] = np.floor(steps + random.random(len(steps))) * _F16_STEP
    return _to_float16(rounded) if np.isfinite(values).all() else None


def _to_float16(values: Float32) -> Array | None:
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    return half if np.isfinite(half).all() else None


def _upper_halves(values: Float32, rounded: Array) -> Array | None:
    upper = (rounded >> 16).astype("<u2")
    # Checks the values, too: the carry may have turned a NaN into a finite number.
    return upper if np.isfinite(values).all() and not ((upper & 0x7F80) == 0x7F80).any() else None
