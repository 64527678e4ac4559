"""Aggregates a round: reads the updates block by block, across the borders of tensors, and writes the next model.

Memory is O(block x updates), independent of the size of the model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import VersionFile
from fedround_server.domain.training import IntegerTensors
from fedround_server.engine.aggregators import AGGREGATORS, Aggregator, Block
from fedround_server.engine.aggregators.integers import rounded_mean, take_heaviest, take_maximum
from fedround_server.engine.format.dtypes import first_not_finite, is_finite, narrow, widen
from fedround_server.engine.format.layouts import Layouts
from fedround_server.engine.format.runs import Run, runs
from fedround_server.engine.format.scaled import differences
from fedround_server.engine.format.tensors import TensorFile, blocks, open_blob
from fedround_server.engine.format.verification import reading_ahead
from fedround_server.engine.format.versions import open_version
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.result import plan

# BatchNorm counts its batches; the count of the update that was trained most is the meaningful one.
COUNTER = "num_batches_tracked"


def aggregate(files: BlobFiles, job: AggregationJob, target: Path) -> VersionFile:
    """Aggregates the updates of a round into a new file, the target, forced to disk.

    Updates without examples are left out. If there are no others, the result is the model itself.

    Returns:
        The target, or a base with the target as its delta.

    Raises:
        AggregationFailed: The result has values that the model's dtype cannot hold.
        BlobDamaged: The model or an update is not what was stored.
    """
    aggregator = AGGREGATORS[job.algorithm]
    weighted = [(update, weight) for update, weight in zip(job.updates, job.weights, strict=True) if weight]
    weights = [weight for _, weight in weighted]
    with reading_ahead() as ahead, ExitStack() as stack:
        model = stack.enter_context(open_version(files, job.model, ahead))
        result = plan(files, job, model)
        trained = result.layout.manifest
        layouts = Layouts(trained, job.transport.encoded(trained))
        block_sizes = job.transport.block_sizes(trained)
        updates = [stack.enter_context(open_blob(files, update, layouts, ahead)) for update, _ in weighted]
        writer = stack.enter_context(result.writer(files, target))
        for name in result.inherited:
            for start, length in blocks(model.layout.manifest[name].num_numbers):
                writer.write(model.block(name, start, length))
        for run in runs(result.layout, [update.layout for update in updates]):
            for start, length in blocks(run.num_numbers):
                base = model.block(run.first, start, length)
                parts = Parts(updates, base, run.first, start, block_sizes.get(run.first, 0))
                if not weights:
                    writer.write(base)
                elif run.dtype.is_floating:
                    block = Block(parts, weights, base, job.options)
                    writer.write(_average(aggregator, block, run, start, keep_non_finite=job.keep_non_finite))
                elif run.first.endswith(COUNTER):
                    writer.write(take_maximum(parts))
                elif job.integers is IntegerTensors.MEAN:
                    writer.write(rounded_mean(parts, weights))
                else:
                    writer.write(take_heaviest(parts, weights))
        return writer.complete()


class Parts(Sequence[Tensor]):
    """The same elements of every update, one tensor each, made on access: a difference is added to the model then."""

    def __init__(self, updates: Sequence[TensorFile], base: Tensor, name: str, start: int, block_size: int = 0) -> None:
        """Reads nothing yet; `base` has these elements of the model, the first of which is `start` in tensor `name`.

        Of int8 differences, `block_size` numbers share a scale.
        """
        self._updates = updates
        self._base = base
        self._name = name
        self._start = start
        self._block_size = block_size

    def __len__(self) -> int:
        """Returns the number of updates."""
        return len(self._updates)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Returns the elements of an update."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        update, length = self._updates[index], len(self._base)
        part = update.block(self._name, self._start, length)
        if part.dtype == self._base.dtype:
            return part
        if part.dtype == torch.int8:
            part = differences(update, self._name, self._start, length, self._block_size)
        # Clamped, since a mean of numbers of the model's type is one. A mean of sums beyond its range might not be, and
        # one participant's update would make the round fail.
        most = torch.finfo(self._base.dtype).max
        return (self._base.double() + part).clamp_(-most, most)


def _average(aggregator: Aggregator, block: Block, run: Run, start: int, *, keep_non_finite: bool) -> Tensor:
    result = narrow(aggregator(block), block.model.dtype)
    kept = torch.isfinite(widen(block.model)).logical_not_() if keep_non_finite else None
    if kept is not None:
        _bytes(result)[kept] = 0
    if not is_finite(result):
        name = run.owner(start + first_not_finite(result))
        raise AggregationFailed(f"the aggregate of tensor {name!r} has values that its dtype cannot hold")
    if kept is not None:
        _bytes(result)[kept] = _bytes(block.model)[kept]
    return result


def _bytes(block: Tensor) -> Tensor:
    """Returns the bytes of a block, one row for each number."""
    return block.view(torch.uint8).view(len(block), block.dtype.itemsize)
