"""Adapters (LoRA) of participants with less memory than others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"(?:.*\.)?lora_([AB])(?:(?:\.[^.]+)?\.weight|)", re.DOTALL)
"""The names that PEFT and loralib give the matrices A and B."""


def truncate(state_dict: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Returns a model with adapters of a lower rank, for rounds of LoraStack and LoraSvd.

    A participant that trains this part sends the same shapes: updates may have adapters of a lower rank than the model.
    With LoraSvd, the rows of A and the columns of B are in the order of their singular values, so that the first ones
    make the nearest product of that rank (FlexLoRA: Bai et al., NeurIPS 2024).

    Args:
        state_dict: NumPy arrays or torch tensors by name. Matrices A are named like "q_proj.lora_A.weight" or
            "q_proj.lora_A.default.weight" and have the shape (rank, in, ...), matrices B (out, rank, ...).
        rank: The rank, >= 1. Adapters whose rank is not higher stay as they are.

    Returns:
        Views of the adapters, and the other tensors themselves.

    Raises:
        ValueError: The rank is less than 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; must be >= 1.")
    result = {}
    for name, value in state_dict.items():
        found = _NAME.fullmatch(name)
        result[name] = value if found is None else value[:rank] if found[1] == "A" else value[:, :rank]
    return result
