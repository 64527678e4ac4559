"""Makes one SWAG posterior of the moments that participants collected (Maddox et al., NeurIPS 2019).

The posterior is the mixture of the participants' posteriors: its first and second moments are the means of theirs,
weighted by example counts. Its deviations are all of theirs, scaled so that the low-rank covariance is the sum of their
outer products. The distance between the participants' means is in the second moment, hence in the diagonal.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import BlobRef, Manifest, TensorSpec
from fedround_server.domain.swag_moments import DEVIATION, MEAN, SECOND, columns
from fedround_server.engine.format.layouts import Layouts
from fedround_server.engine.format.manifest import make_header
from fedround_server.engine.format.tensors import TensorFile, blocks, open_blobs
from fedround_server.engine.format.verification import reading_ahead
from fedround_server.engine.format.writer import TensorWriter
from fedround_server.engine.jobs import AggregationFailed, AggregationJob


def collect(files: BlobFiles, job: AggregationJob, target: Path) -> BlobRef:
    """Aggregates moments into a new file: mean/NAME and second/NAME, and deviation/K/NAME over all participants.

    The job's updates are moments; its model is not used. If none has examples, all have the same weight.

    Raises:
        AggregationFailed: The moments have no finite mean.
        BlobDamaged: An update is not what was stored.
    """
    layouts = Layouts()
    weights = job.weights if any(job.weights) else (1,) * len(job.weights)
    with reading_ahead() as ahead, ExitStack() as stack:
        updates = stack.enter_context(open_blobs(files, job.updates, layouts, ahead))
        first = updates[0].layout.manifest
        rank = columns(first)
        manifest = dict(_posterior(first, rank, len(updates)))
        writer = stack.enter_context(TensorWriter(target, make_header(manifest)))
        for name, spec in manifest.items():
            for start, length in blocks(spec.num_elements):
                if name.startswith(f"{DEVIATION}/"):
                    block = _deviation(weights, updates, name, rank, start, length)
                else:
                    parts = [update.block(name, start, length) for update in updates]
                    block = _mean(parts, weights)
                if not torch.isfinite(block).all():
                    raise AggregationFailed(f"the aggregate of {name!r} has values that its dtype cannot hold")
                writer.write(block)
        return writer.finish()


def _posterior(specs: Manifest, rank: int, count: int) -> Iterator[tuple[str, TensorSpec]]:
    for name in sorted(specs):
        if name.startswith((f"{MEAN}/", f"{SECOND}/")):
            yield name, specs[name]
    for column in range(rank * count):
        for name in sorted(specs):
            if name.startswith(f"{DEVIATION}/0/"):
                yield f"{DEVIATION}/{column}/{name.removeprefix(f'{DEVIATION}/0/')}", specs[name]


def _mean(parts: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Returns the weighted mean in float64, summed in the order of the updates."""
    # Weights are scaled by a power of two, which is exact, so that the sum stays in range.
    scale = 0.5 ** sum(weights).bit_length()
    total = torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        total.add_(part * (weight * scale))
    return total.div_(sum(weights) * scale)


def _deviation(
    weights: Sequence[int], updates: list[TensorFile], name: str, rank: int, start: int, length: int
) -> Tensor:
    _, column, tensor = name.split("/", 2)
    number, own = divmod(int(column), rank)
    part = updates[number].block(f"{DEVIATION}/{own}/{tensor}", start, length)
    scale = sqrt(weights[number] / sum(weights) / max(rank - 1, 1))
    return (part.to(torch.float64) * scale).to(torch.float32)
