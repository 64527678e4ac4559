"""Correct rounding by integer arithmetic: what the engine's means are compared with."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

# Digits of the significand, the exponent of the smallest number, and the largest exponent.
FORMATS = {
    torch.float64: (53, -1074, 1023),
    torch.float32: (24, -149, 127),
    torch.float16: (11, -24, 15),
    torch.bfloat16: (8, -133, 127),
}
TORCH = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


def rounded(exact: Fraction, dtype: torch.dtype) -> float:
    """The nearest number of a dtype, ties to even; infinity beyond its range."""
    digits, smallest, largest = FORMATS[dtype]
    if not exact:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, smallest)
    whole, rest = divmod(size / unit, 1)
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2):
        whole += 1
    value = whole * unit
    found = math.inf if value >= Fraction(2) ** (largest + 1) else float(value)
    return math.copysign(found, 1 if exact > 0 else -1)


def combination(column: Sequence[float], coefficients: Sequence[float], divisor: float, dtype: torch.dtype) -> float:
    """A linear combination, rounded once; a zero is negative if all its summands are."""
    terms = [Fraction(one) * Fraction(other) for one, other in zip(column, coefficients, strict=True)]
    exact = sum(terms, Fraction()) / Fraction(divisor)
    if exact or any(terms):
        return rounded(exact, dtype)
    signs = [math.copysign(1, one) * math.copysign(1, other) for one, other in zip(column, coefficients, strict=True)]
    return math.copysign(0.0, max(signs))


def mean(arrays: Sequence[np.ndarray], weights: Sequence[int], dtype: np.dtype | None = None) -> np.ndarray:
    """The weighted mean, rounded once, to the arrays' dtype by default; of complex numbers part by part."""
    dtype = arrays[0].dtype if dtype is None else dtype
    if dtype.kind == "c":
        parts = [np.stack([array.real, array.imag], -1) for array in arrays]
        return mean(parts, weights).view(dtype)[..., 0]
    columns = zip(*(array.astype(np.float64).ravel().tolist() for array in arrays), strict=True)
    found = [combination(column, weights, sum(weights), TORCH[dtype.name]) for column in columns]
    return np.array(found).astype(dtype).reshape(arrays[0].shape)
