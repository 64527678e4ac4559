"""The file of a partial sum: what the updates of a round add up to, for another server."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import is_counter
from fedround_server.domain.model import VersionFile
from fedround_server.domain.partial_sum import COMPONENTS, MAX_NUM_EXAMPLES, NUM_EXAMPLES, NUM_UPDATES, sum_tensors
from fedround_server.engine.computation import Computation
from fedround_server.engine.expansion import SumTooLarge, TooManyComponents, exact_sums
from fedround_server.engine.format.assembly import in_order
from fedround_server.engine.format.header import read_metadata
from fedround_server.engine.format.manifest import PREFIX, make_header
from fedround_server.engine.format.writer import Bytes, bytes_of
from fedround_server.engine.integers import take_maximum
from fedround_server.engine.jobs import AggregationFailed
from fedround_server.engine.source import Source, Span


@dataclass(frozen=True, slots=True)
class PartialSums:
    """Adds spans of the updates, each times its number of examples.

    Attributes:
        weights: The numbers of examples.
        components: How many components an element has.
    """

    weights: tuple[int, ...]
    components: int

    def __call__(self, source: Source, span: Span) -> Bytes:
        """Returns the numbers of a span.

        Raises:
            TooManyComponents: An element needs more components.
            AggregationFailed: A number is too large.
        """
        block = source.block(span)
        if not block.run.dtype.is_floating:
            # The others have no sums: `check_tensors` lets none pass.
            is_maximum = self.weights and is_counter(block.run.first)
            return bytes_of(take_maximum(block.updates()) if is_maximum else block.stored)
        if not self.weights:
            return bytes_of(torch.zeros(len(block) * self.components, dtype=torch.float64))
        vectors, coefficients = block.summands(self.weights)
        try:
            found = exact_sums(vectors, list(map(int, coefficients)), self.components)
        except SumTooLarge as error:
            name = block.run.owner(block.start + error.args[0])
            raise AggregationFailed(
                f"tensor {name!r} has numbers of 2^960 or more, of which no exact sum is made"
            ) from None
        return bytes_of(found.T.contiguous().flatten())


def write_sum(files: BlobFiles, target: Path, computation: Computation, weights: tuple[int, ...]) -> VersionFile:
    """Writes a partial sum, with as many components as it needs, forced to disk.

    Args:
        files: Where the stored files are.
        target: The path of the new file.
        computation: The round.
        weights: num_examples of each update that counts.

    Raises:
        AggregationFailed: It needs more components than a file may have, or a number of examples is too large.
        BlobDamaged: The model or an update is not what was stored.
    """
    if sum(weights) > MAX_NUM_EXAMPLES:
        raise AggregationFailed(f"the updates have {sum(weights)} examples together, and a sum may have 2^53")
    source = computation.source
    spans = [span for index in range(len(source.runs)) for span in source.spans(index)]
    layout = source.result.layout
    manifest = {name: layout.manifest[name] for name in in_order(layout)}
    # Participants may claim more updates than a parent takes. With one example each, these are as many as count.
    # Without any that counts, it still is a sum: without weight, as an update without examples is.
    num_updates = min(sum(_updates_in(source)) or 1, MAX_NUM_EXAMPLES)
    metadata = {NUM_EXAMPLES: str(sum(weights)), NUM_UPDATES: str(num_updates)}
    for components in COMPONENTS:
        header = make_header(sum_tensors(manifest, components), metadata)
        try:
            with replace(source.result, header=header).writer(files, target) as writer:
                for part in computation.map(PartialSums(weights, components), spans):
                    writer.write(part)
                return writer.complete()
        except TooManyComponents:
            target.unlink()
    raise AggregationFailed(
        f"the updates differ too much in size for an exact sum: an element of it would need more than {COMPONENTS[-1]}"
        " float64 numbers"
    )


def _updates_in(source: Source) -> Iterator[int]:
    """Yields how many updates each update is the sum of."""
    for update in source.updates:
        is_sum = update.components > 0
        yield int(read_metadata(update.file.header[PREFIX:])[NUM_UPDATES]) if is_sum else 1
