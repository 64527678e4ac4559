"""Numbers as int8 and a scale for each block: a quarter of the bytes of float32."""

from __future__ import annotations

from typing import Any

import numpy as np

Float64 = np.ndarray[Any, np.dtype[np.float64]]
Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int8 = np.ndarray[Any, np.dtype[np.int8]]

LIMIT = 127
"""The largest int8, and the largest negative one."""


def block_scales(values: Float64, block_size: int) -> Float32 | None:
    """Returns the scale of each block: its largest absolute value / 127, rounded up to float32.

    Args:
        values: A flat array of finite numbers.
        block_size: How many numbers share a scale; the last block may have fewer.

    Returns:
        Shape (blocks,); 0 for a block of zeros. None if float32 cannot hold a scale.
    """
    rows = _rows(values, block_size)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    with np.errstate(over="ignore"):
        scales = (largest / LIMIT).astype("<f4")
        # Otherwise the largest value would be beyond 127 scales; and those of tiny numbers would be 0.
        scales = np.where(scales.astype(np.float64) * LIMIT < largest, np.nextafter(scales, np.float32(np.inf)), scales)
    return scales if np.isfinite(scales).all() else None


def to_int8(values: Float64, scales: Float32, block_size: int, random: np.random.Generator | None) -> Int8:
    """Divides numbers by the scale of their block, and rounds them to integers.

    Args:
        values: A flat array of finite numbers.
        scales: Their scales, as `block_scales` returns them.
        block_size: How many numbers share a scale.
        random: Rounds up or down at random, so that the expected value of integer * scale is the number, with an error
            of less than a scale. None rounds to the nearest, ties to even, with an error of at most half a scale.

    Returns:
        An array of the same shape, with values from -127 to 127.
    """
    rows = _rows(values, block_size)
    divisors = np.where(scales == 0, np.float32(1), scales).astype(np.float64)
    quotients = rows / divisors[:, np.newaxis]
    if random is None:
        np.rint(quotients, out=quotients)
    else:
        quotients += random.random(quotients.shape)
        np.floor(quotients, out=quotients)
    return quotients.astype(np.int8).reshape(-1)[: len(values)]


def _rows(values: Float64, block_size: int) -> Float64:
    """Returns the numbers as one row for each block, the last one filled up with zeros."""
    missing = -len(values) % block_size
    return (np.pad(values, (0, missing)) if missing else values).reshape(-1, block_size)
