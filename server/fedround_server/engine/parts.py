"""The updates of a round, read block by block."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedround_server.engine.format.dtypes import widen
from fedround_server.engine.format.runs import Run
from fedround_server.engine.format.scaled import differences
from fedround_server.engine.format.tensors import TensorFile, Tensors


class Block:
    """The same elements of the model and of every update: some of one tensor, or of several adjacent ones.

    Attributes:
        model: Those of the model; shape (elements,), in its dtype.
        kept: Where the model has NaN or Inf that stay as they are; None if there are none. Both the model and the
            updates have zeros there.
    """

    def __init__(
        self,
        model: Tensors,
        updates: Sequence[TensorFile],
        run: Run,
        start: int,
        length: int,
        block_size: int = 0,
        *,
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
            keep_non_finite: Whether NaN and Inf of the model stay as they are.
        """
        self.run = run
        self.start = start
        self.stored = model.block(run.first, start, length)
        self.kept: Tensor | None = None
        self.model = self.stored
        self._updates = updates
        self._block_size = block_size
        if keep_non_finite and run.dtype.is_floating:
            is_finite = torch.isfinite(widen(self.stored))
            if not is_finite.all():
                self.kept = is_finite.logical_not_()
                self.model = self._cleaned(self.stored)

    def __len__(self) -> int:
        """Returns the number of elements."""
        return len(self.stored)

    def updates(self) -> list[Tensor]:
        """Returns the elements of each update.

        Returns:
            Tensors of shape (elements,), not to be written to: in the model's dtype, or in float64 where they are the
            sum of the model and a difference.
        """
        return [self._update(update) for update in self._updates]

    def _update(self, update: TensorFile) -> Tensor:
        part = update.block(self.run.first, self.start, len(self))
        if part.dtype == self.stored.dtype:
            return part if self.kept is None else self._cleaned(part)
        if part.dtype == torch.int8:
            part = differences(update, self.run.first, self.start, len(self), self._block_size)
        # Clamped, since a mean of numbers of the model's type is one. A mean of sums beyond its range might not be, and
        # one participant's update would make the round fail.
        most = torch.finfo(self.stored.dtype).max
        return (self.model.double() + part).clamp_(-most, most)

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
