"""The 8-bit floating-point formats of safetensors and torch, which NumPy lacks (Micikevicius et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_EXPONENT_BITS = {"F8_E4M3": 4, "F8_E5M2": 5}
FLOAT8 = frozenset(_EXPONENT_BITS)


def _values(exponent_bits: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns what the codes 0 to 127 stand for."""
    mantissa_bits = 7 - exponent_bits
    codes, bias = np.arange(128), 2 ** (exponent_bits - 1) - 1
    exponent, mantissa = codes >> mantissa_bits, (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    values = np.ldexp(mantissa + (exponent > 0), np.maximum(exponent, 1) - bias)
    if exponent_bits == 4:
        values[-1] = np.nan
    else:
        values[124:] = [np.inf, np.nan, np.nan, np.nan]
    return np.asarray(values, np.float32)


_POSITIVE: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]] = {
    name: _values(bits) for name, bits in _EXPONENT_BITS.items()
}


def from_float8(data: memoryview, dtype: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns the numbers that the codes of an 8-bit format stand for."""
    positive = _POSITIVE[dtype]
    return np.concatenate([positive, -positive])[np.frombuffer(data, np.uint8)]


def round_to_float8(
    values: np.ndarray[Any, np.dtype[np.float32]], dtype: str
) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Rounds float32 to the nearest number of an 8-bit format, ties to even.

    Args:
        values: An array of any shape.
        dtype: "F8_E4M3" or "F8_E5M2".

    Returns:
        The codes, as an array of the same shape. None if the format cannot hold a value.
    """
    positive, size = _POSITIVE[dtype], np.abs(values)
    finite = positive[np.isfinite(positive)]
    # Numbers less than half a step above the largest one are rounded down to it.
    steps = np.append(finite, 2 * finite[-1] - finite[-2])
    middles = (steps[:-1] + steps[1:]) / 2
    codes = np.searchsorted(middles, size)
    codes += (codes % 2 == 1) & (size == middles[np.minimum(codes, len(middles) - 1)])
    special = ~np.isfinite(values)
    if (codes[~special] >= len(finite)).any() or (dtype == "F8_E4M3" and np.isinf(values).any()):
        return None
    codes[np.isinf(values)], codes[np.isnan(values)] = 124, 127
    return np.asarray(codes + 128 * np.signbit(values), np.uint8)
