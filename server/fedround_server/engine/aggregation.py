"""Walks over the tensors of a round's updates, block by block across their borders, and writes the next model.

Memory is O(block x updates), whatever the size of the model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from fedround_server.domain.model import BlobRef
from fedround_server.engine.aggregators import AGGREGATORS, Aggregator, Block
from fedround_server.engine.format.runs import Run, runs
from fedround_server.engine.format.tensors import Layouts, TensorFile, TensorWriter, blocks, first_not_finite, is_finite
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.rounding import narrow

# BatchNorm counts its batches; the count of the most trained update is the one that makes sense.
COUNTER = "num_batches_tracked"


def aggregate(job: AggregationJob, target: Path) -> BlobRef:
    """Aggregates the updates of a round into a new file.

    Args:
        job: What is aggregated.
        target: Where to write; must not exist.

    Raises:
        AggregationFailed: The result has values that the model's dtype cannot hold.
    """
    aggregator = AGGREGATORS[job.algorithm]
    layouts = Layouts(job.differences)
    with ExitStack() as stack:
        model = stack.enter_context(TensorFile(job.model, layouts))
        updates = [stack.enter_context(TensorFile(path, layouts)) for path in job.updates]
        writer = stack.enter_context(TensorWriter(target, model.header))
        for run in runs(model.layout, [update.layout for update in updates]):
            for start, length in blocks(run.num_elements):
                base = model.block(run.first, start, length)
                parts = Parts(updates, base, run.first, start)
                if run.dtype.is_floating:
                    writer.write(_average(aggregator, Block(parts, job.weights, base, job.options), run, start))
                elif run.first.endswith(COUNTER):
                    writer.write(torch.stack(list(parts)).amax(0))
                else:
                    writer.write(parts[_heaviest(job.weights)])
        return writer.finish()


class Parts(Sequence[Tensor]):
    """The same elements of every update, one tensor each; a difference is added to the model's when it is asked for."""

    def __init__(self, updates: Sequence[TensorFile], base: Tensor, name: str, start: int) -> None:
        """Looks at nothing yet.

        Args:
            updates: The updates' files.
            base: These elements of the model.
            name: The tensor from whose start they are counted.
            start: Index of the first one.
        """
        self._updates = updates
        self._base = base
        self._name = name
        self._start = start

    def __len__(self) -> int:
        """Returns how many updates there are."""
        return len(self._updates)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Returns the elements of an update."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        part = self._updates[index].block(self._name, self._start, len(self._base))
        if part.dtype == self._base.dtype:
            return part
        # Two numbers of the model's type have a mean of its type. Sums beyond its range might have none, and the round
        # would fail for what one participant sent.
        most = torch.finfo(self._base.dtype).max
        return (self._base.double() + part).clamp_(-most, most)


def _average(aggregator: Aggregator, block: Block, run: Run, start: int) -> Tensor:
    result = narrow(aggregator(block), block.model.dtype)
    if not is_finite(result):
        name = run.owner(start + first_not_finite(result))
        raise AggregationFailed(f"the aggregate of tensor {name!r} has values that its dtype cannot hold")
    return result


def _heaviest(weights: Sequence[int]) -> int:
    """Returns the index of the update with the most examples, of equals the first."""
    return max(range(len(weights)), key=lambda index: (weights[index], -index))
