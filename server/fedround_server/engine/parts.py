"""The updates of a round, read block by block."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedround_server.domain.control import CONTROL
from fedround_server.engine.format.dtypes import widen
from fedround_server.engine.format.runs import Run
from fedround_server.engine.format.scaled import differences
from fedround_server.engine.format.tensors import TensorFile, Tensors

TOLERANCE = 2.0**-40
"""Components are added with an error that is smaller, relative to the sum."""


@dataclass(frozen=True, slots=True)
class OpenedUpdate:
    """An update, and what it stands for; `UpdateOrigin` describes most fields.

    Attributes:
        components: How many numbers an element has, if it is a partial sum; 0 if it is not.
        weight: Its number of examples.
    """

    file: TensorFile
    base: Tensors | None = None
    factor: float = 1.0
    replaces_model: bool = False
    components: int = 0
    weight: int = 1


class Block:
    """The same elements of the model and of every update: some of one tensor, or of several adjacent ones.

    Attributes:
        model: Those of the model; shape (elements,), in its dtype.
        place: The place of the first element among all that are aggregated.
        kept: Where the model has NaN or Inf that stay as they are; None if there are none. Both the model and the
            updates have zeros there.
    """

    def __init__(
        self,
        model: Tensors,
        updates: Sequence[OpenedUpdate],
        run: Run,
        start: int,
        length: int,
        block_size: int = 0,
        place: int = 0,
        *,
        is_trained: bool = True,
        keep_non_finite: bool = False,
    ) -> None:
        """Reads the elements of the model.

        Args:
            model: The model.
            updates: The updates.
            run: The tensors.
            start: Index of the first number in the run.
            length: How many numbers.
            block_size: How many numbers of int8 differences share a scale.
            place: The place of the first element among all that are aggregated.
            is_trained: Whether the updates stand for what their origins say, and not for themselves.
            keep_non_finite: Whether NaN and Inf of the model stay as they are.
        """
        self.run = run
        self.start = start
        self.stored = model.block(run.first, start, length)
        self.kept: Tensor | None = None
        self.model = self.stored
        self.place = place
        self._updates = updates
        self._is_trained = is_trained
        self._block_size = block_size
        if keep_non_finite and run.dtype.is_floating:
            is_finite = torch.isfinite(widen(self.stored))
            if not is_finite.all():
                self.kept = is_finite.logical_not_()
                self.model = self._cleaned(self.stored)

    def __len__(self) -> int:
        """Returns the number of elements."""
        return len(self.stored)

    def summands(self, coefficients: Sequence[float]) -> tuple[list[Tensor], list[float]]:
        """Returns vectors and coefficients that add up to the sum of multiples of the updates.

        Args:
            coefficients: One for each update; of a partial sum, its number of examples.

        Returns:
            An update as `updates` has it, and its coefficient; of a partial sum, the vectors of its components.
        """
        if not any(update.components for update in self._updates):
            return self.updates(), list(coefficients)
        vectors, factors = [], []
        for update, coefficient in zip(self._updates, coefficients, strict=True):
            parts = list(self._sum_of(update)) if update.components else [self._update(update)]
            vectors += parts
            factors += [1.0] * len(parts) if update.components else [coefficient]
        return vectors, factors

    def _sum_of(self, update: OpenedUpdate) -> Tensor:
        """Returns a partial sum: shape (components, elements), float64."""
        count = update.components
        numbers = update.file.block(self.run.first, self.start * count, len(self) * count)
        parts = numbers.view(len(self), count).T.clone(memory_format=torch.contiguous_format)
        # No sum of numbers of the model's type is larger. As in `_sum`, so that a total out of range does not make a
        # round fail; a sum of sums can still fail for its components.
        largest = torch.finfo(torch.float64).max
        most = min(torch.finfo(self.stored.dtype).max * update.weight, largest)
        total = parts.sum(0)
        beyond = (total.abs() <= min(most * (1 + TOLERANCE), largest)).logical_not_()
        if beyond.any():
            parts[:, beyond] = 0
            parts[0][beyond] = total[beyond].clamp(-most, most)
        return parts

    def updates(self) -> list[Tensor]:
        """Returns the elements of each update; there must be no partial sums, except where these have integers.

        Returns:
            Tensors of shape (elements,), not to be written to: in the model's dtype, or in float64 where they are the
            sum of the model and a difference.
        """
        return [self._update(update) for update in self._updates]

    def control(self) -> Tensor:
        """Returns the sum of the changes of control variates, in the order of the updates: shape (elements,), float64.

        The updates must have them.
        """
        total = torch.zeros(len(self), dtype=torch.float64)
        for update in self._updates:
            total.add_(update.file.block(CONTROL + self.run.first, self.start, len(self)))
        return total

    def _update(self, update: OpenedUpdate) -> Tensor:
        part = update.file.block(self.run.first, self.start, len(self))
        is_moved = self._is_trained or (update.replaces_model and self.run.dtype.is_floating)
        factor = update.factor if is_moved else 1.0
        # What counts is how far it is from where it started, or how far from the model.
        counts_from_base = self._is_trained and not update.replaces_model
        if part.dtype == self.stored.dtype:
            part = part if self.kept is None else self._cleaned(part)
            if factor == 1 and not (counts_from_base and update.base is not None):
                return part
            origin = self._base(update) if counts_from_base else self.model
            return self._sum(widen(part).double() - widen(origin).double(), factor)
        if part.dtype == torch.int8:
            part = differences(update.file, self.run.first, self.start, len(self), self._block_size)
        if update.base is not None and not counts_from_base:
            part = widen(self._base(update)).double() - widen(self.model).double() + part
        return self._sum(part, factor)

    def _sum(self, difference: Tensor, factor: float = 1) -> Tensor:
        """Returns the model + factor * difference.

        Clamped, since a mean of numbers of the model's type is one. A mean of sums beyond its range might not be, and
        one participant's update would make the round fail.
        """
        most = torch.finfo(self.stored.dtype).max
        scaled = difference if factor == 1 else difference.double() * factor
        return (self.model.double() + scaled).clamp_(-most, most)

    def _base(self, update: OpenedUpdate) -> Tensor:
        if update.base is None:
            return self.model
        part = update.base.block(self.run.first, self.start, len(self))
        return part if self.kept is None else self._cleaned(part)

    def _cleaned(self, part: Tensor) -> Tensor:
        cleaned = part.clone()
        _bytes(cleaned)[self.kept] = 0
        return cleaned

    def restored(self, result: Tensor) -> Tensor:
        """Returns a result, with the NaN and Inf of the model where they stay as they are; overwrites it."""
        if self.kept is not None:
            _bytes(result)[self.kept] = _bytes(self.stored)[self.kept]
        return result


def _bytes(block: Tensor) -> Tensor:
    """Returns the bytes of a block, one row for each number."""
    return block.view(torch.uint8).view(len(block), block.dtype.itemsize)
