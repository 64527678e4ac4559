"""Types and errors of state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

StateDict: TypeAlias = Mapping[str, Any]
"""Tensors by name: numpy arrays, torch tensors, or some of each."""

Framework: TypeAlias = Literal["numpy", "torch"]

DTYPES = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"})
"""The dtypes that the server accepts; bfloat16 from torch only, since numpy does not have it."""


class TensorError(ValueError):
    """A state dict cannot be written as a model file, or a file cannot be read as one."""
