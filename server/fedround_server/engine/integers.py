"""Aggregates of tensors of integers and booleans, which are not averaged like floating-point numbers.

They are computed with numpy, since torch cannot compute with unsigned integers wider than 8 bits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def take_heaviest(updates: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Returns the elements of the update with the most examples, of equals the first."""
    return updates[max(range(len(weights)), key=lambda index: (weights[index], -index))]


def take_maximum(updates: Sequence[Tensor]) -> Tensor:
    """Returns the largest element of all updates in each place."""
    highest = updates[0].numpy().copy()
    for update in updates:
        np.maximum(highest, update.numpy(), out=highest)
    return torch.from_numpy(highest)


def rounded_mean(updates: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Averages integers, weighted by example counts, and rounds to the nearest integer, halves up.

    Distances from the smallest element of all updates are summed in float64 in canonical order, so that the mean of
    equal elements is exact even where float64 does not hold them. Booleans are averaged as 0 and 1.

    Args:
        updates: One tensor per update, each of shape (elements,) in the same integer dtype or bool; in canonical order.
        weights: num_examples of each update, >= 1.

    Returns:
        Shape (elements,), in the dtype of the updates.
    """
    arrays = [update.view(torch.uint8).numpy() if update.dtype is torch.bool else update.numpy() for update in updates]
    lowest, highest = arrays[0].copy(), arrays[0].copy()
    for array in arrays:
        np.minimum(lowest, array, out=lowest)
        np.maximum(highest, array, out=highest)
    # Modulo 2^64: the differences, which are not negative, are exact.
    origin = lowest.astype(np.uint64)
    span = highest.astype(np.uint64) - origin
    total = np.zeros(len(lowest))
    for array, weight in zip(arrays, weights, strict=True):
        total += (array.astype(np.uint64) - origin).astype(np.float64) * weight
    mean = total / sum(weights)
    whole = np.floor(mean)
    whole += mean - whole >= 0.5
    # Rounding must not carry the mean over the largest element, nor beyond what uint64 holds.
    inside = whole < span.astype(np.float64)
    distance = np.where(inside, np.where(inside, whole, 0).astype(np.uint64), span)
    result = torch.from_numpy((origin + distance).astype(lowest.dtype))
    return result.view(torch.bool) if updates[0].dtype is torch.bool else result
