"""Types and errors of state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

StateDict: TypeAlias = Mapping[str, Any]
"""Tensors by name: numpy arrays, torch tensors, or arrays of other libraries that numpy can read; also nested, as in
flax: then their names are joined by slashes."""

Framework: TypeAlias = Literal["numpy", "torch"]


class TensorError(ValueError):
    """A state dict cannot be written as a model file, or a file cannot be read as one."""
