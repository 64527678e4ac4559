"""Walks over the tensors of a round's updates, block by block, and writes the next model.

Memory is O(block x updates), whatever the size of the model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.domain.model import BlobRef
from fedround_server.engine.aggregators import AGGREGATORS, Aggregator, Block
from fedround_server.engine.job import AggregationFailed, AggregationJob
from fedround_server.engine.rounding import narrow
from fedround_server.engine.tensors import Layouts, TensorFile, TensorWriter, blocks, is_finite

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
    layouts = Layouts()
    with ExitStack() as stack:
        model = stack.enter_context(TensorFile(job.model, layouts))
        updates = [stack.enter_context(TensorFile(path, layouts)) for path in job.updates]
        writer = stack.enter_context(TensorWriter(target, model.header))
        for name in sorted(model.layout.offsets, key=model.layout.offsets.__getitem__):
            spec = model.layout.manifest[name]
            for start, length in blocks(spec.num_elements):
                parts = [update.block(name, start, length) for update in updates]
                base = model.block(name, start, length)
                if spec.dtype.is_floating:
                    writer.write(_average(aggregator, Block(parts, job.weights, base, job.options), name))
                elif name.endswith(COUNTER):
                    writer.write(torch.stack(parts).amax(0))
                else:
                    writer.write(parts[_heaviest(job.weights)])
        return writer.finish()


def _average(aggregator: Aggregator, block: Block, name: str) -> Tensor:
    result = narrow(aggregator(block), block.model.dtype)
    if not is_finite(result):
        raise AggregationFailed(f"the aggregate of tensor {name!r} has values that its dtype cannot hold")
    return result


def _heaviest(weights: Sequence[int]) -> int:
    """Returns the index of the update with the most examples, of equals the first."""
    return max(range(len(weights)), key=lambda index: (weights[index], -index))
