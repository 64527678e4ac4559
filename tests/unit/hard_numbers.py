"""Summands that make correct rounding hard: rows of numbers for each element."""

import math
from collections.abc import Callable

import numpy as np
import torch

Draw = Callable[[np.random.Generator, torch.dtype, tuple[int, int]], np.ndarray]


def near(rng: np.random.Generator, dtype: torch.dtype, shape: tuple[int, int]) -> np.ndarray:
    """What participants send: models that differ a little."""
    return rng.standard_normal(shape[1]) + 1e-3 * rng.standard_normal(shape)


def of_all_sizes(rng: np.random.Generator, dtype: torch.dtype, shape: tuple[int, int]) -> np.ndarray:
    info = torch.finfo(dtype)
    exponents = rng.uniform(math.log2(info.smallest_normal) - 8, math.log2(info.max) - 0.01, shape)
    return np.copysign(2.0**exponents, rng.standard_normal(shape))


def cancelling(rng: np.random.Generator, dtype: torch.dtype, shape: tuple[int, int]) -> np.ndarray:
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 12, shape)
    pairs = shape[0] // 2
    nearly = 1 + 2.0 ** -rng.integers(1, 60, (pairs, shape[1])) * rng.integers(-1, 2, (pairs, shape[1]))
    values[1 : 2 * pairs : 2] = -values[0 : 2 * pairs : 2] * nearly
    return values


def zeros_and_denormals(rng: np.random.Generator, dtype: torch.dtype, shape: tuple[int, int]) -> np.ndarray:
    tiny = torch.finfo(dtype).smallest_normal
    return rng.choice([0.0, -0.0, tiny, -tiny, tiny / 16, 1.0, -1.0], shape)


def giants(rng: np.random.Generator, dtype: torch.dtype, shape: tuple[int, int]) -> np.ndarray:
    info = torch.finfo(dtype)
    return rng.choice([info.max, -info.max, info.max / 2, 1.0, -info.tiny], shape)


def over_three_numbers(rng: np.random.Generator, dtype: torch.dtype, shape: tuple[int, int]) -> np.ndarray:
    """Sums that cancel to what neither a float64 number nor two of them keep."""
    info = torch.finfo(dtype)
    large = 2.0 ** rng.integers(int(math.log2(info.max)) // 2, int(math.log2(info.max)) - 2, shape)
    values = np.copysign(large, rng.standard_normal(shape))
    values[1::3] = -values[0 : 3 * (len(values[1::3])) : 3]
    values[2::3] = rng.choice([info.tiny, 1.0, -info.eps], values[2::3].shape)
    return values


DRAWS: tuple[Draw, ...] = (near, of_all_sizes, cancelling, zeros_and_denormals, giants, over_three_numbers)
