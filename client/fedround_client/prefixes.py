"""Prefixes that wrappers of networks put before the names of all tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from fedround_client.tensor_types import TensorError

Value = TypeVar("Value")

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""The prefixes of DataParallel and DistributedDataParallel, and of torch.compile."""


def strip_prefix(state: Mapping[str, Value], *prefixes: str) -> dict[str, Value]:
    """Removes prefixes from the names of a state dict, repeatedly.

    strip_prefix(torch.compile(network).state_dict())

    Args:
        state: A state dict; it is not changed.
        prefixes: The prefixes to remove where a name begins with them; by default "module.", as DataParallel and
            DistributedDataParallel have it, and "_orig_mod.", as torch.compile has it.

    Returns:
        A dict with the same values.

    Raises:
        TensorError: Two tensors would have the same name.
    """
    stripped: dict[str, Value] = {}
    for name, value in state.items():
        short = name
        while prefix := next((one for one in prefixes or WRAPPER_PREFIXES if one and short.startswith(one)), ""):
            short = short.removeprefix(prefix)
        if short in stripped:
            raise TensorError(f"Without the prefix, two tensors have the name {short!r}: rename one of them.")
        stripped[short] = value
    return stripped


def wrapper_prefix(names: Collection[str]) -> str:
    """Returns what wrappers have put before all of some names; empty if nothing."""
    found = ""
    while prefix := next((one for one in WRAPPER_PREFIXES if _all_begin(names, found + one)), ""):
        found += prefix
    return found


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)
