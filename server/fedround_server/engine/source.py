"""The model and the updates of a round, opened and divided into blocks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path

from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.tensor_selection import matcher
from fedround_server.engine.format.assembly import in_order
from fedround_server.engine.format.layouts import Layouts
from fedround_server.engine.format.runs import Run, runs
from fedround_server.engine.format.tensors import BLOCK, Tensors, open_blob
from fedround_server.engine.format.versions import open_version
from fedround_server.engine.jobs import AggregationJob, UpdateOrigin
from fedround_server.engine.parts import Block, OpenedUpdate
from fedround_server.engine.result import Result, plan
from fedround_server.engine.slots import Slots, open_slots

FEW = 8
"""More updates than this have smaller blocks, so that they take no more memory."""
SMALLEST_BLOCK = 4 * 1024


class Source:
    """The opened files of an aggregation.

    Attributes:
        model: The model that the round started from.
        result: What is written.
        slots: The state.
        runs: The tensors that are aggregated, in the order of the result.
    """

    def __init__(
        self, model: Tensors, result: Result, updates: Sequence[OpenedUpdate], slots: Slots, job: AggregationJob
    ) -> None:
        self.model = model
        self.result = result
        self.slots = slots
        self._updates = updates
        self._keep_non_finite = job.keep_non_finite
        self._block_sizes = job.transport.block_sizes(result.layout.manifest)
        self._is_buffer = _buffers(job)
        files = [update.file for update in updates]
        bases = [update.base for update in updates if update.base is not None]
        layouts = [file.layout for file in (*files, *bases, *slots.found.values())]
        self.runs: Sequence[Run] = list(runs(result.layout, layouts, apart=self._is_buffer))
        lengths = [run.num_numbers for run in self.runs]
        self._places = dict(zip((run.first for run in self.runs), accumulate(lengths, initial=0), strict=False))

    def is_trained(self, run: Run) -> bool:
        """Returns whether the stages of the aggregation apply to a run: it is floating, and has no buffers."""
        return run.dtype.is_floating and not self._is_buffer(run.first)

    def blocks(self, run: Run) -> Iterator[Block]:
        """Divides a run into blocks."""
        size = max(SMALLEST_BLOCK, BLOCK * FEW // max(FEW, len(self._updates)))
        for start in range(0, run.num_numbers, size):
            length = min(size, run.num_numbers - start)
            scaled = self._block_sizes.get(run.first, 0)
            yield Block(
                self.model,
                self._updates,
                run,
                start,
                length,
                scaled,
                self._places[run.first] + start,
                is_trained=self.is_trained(run),
                keep_non_finite=self._keep_non_finite,
            )

    def trained_blocks(self) -> Iterator[Block]:
        """Yields the blocks to which the stages of the aggregation apply."""
        for run in self.runs:
            if self.is_trained(run):
                yield from self.blocks(run)


@contextmanager
def open_source(
    files: BlobFiles, job: AggregationJob, counted: Sequence[int], targets: Mapping[str, Path], ahead: Executor
) -> Iterator[Source]:
    """Opens the files of an aggregation.

    Args:
        files: Where the stored files are.
        job: The aggregation.
        counted: The indices of the updates that take part.
        targets: The paths of the files of the new state, by slot.
        ahead: Verifies what is likely to be read next.

    Raises:
        BlobDamaged: A file is not what was stored.
    """
    with ExitStack() as stack:
        model = stack.enter_context(open_version(files, job.model, ahead))
        result = plan(files, job, model)
        manifest = result.layout.manifest
        layouts = Layouts(manifest, job.transport.encoded(manifest))
        origins = job.origins or (UpdateOrigin(),) * len(job.updates)
        bases = {
            origins[index].base: stack.enter_context(open_version(files, base, ahead))
            for index in counted
            if (base := origins[index].base) is not None
        }
        updates = [
            OpenedUpdate(
                stack.enter_context(open_blob(files, job.updates[index], layouts, ahead)),
                None if origins[index].base is None else bases[origins[index].base],
                origins[index].factor,
            )
            for index in counted
        ]
        is_buffer = _buffers(job)
        trained = [name for name in in_order(result.layout) if manifest[name].dtype.is_floating and not is_buffer(name)]
        tensors = {name: manifest[name] for name in trained}
        slots = stack.enter_context(open_slots(files, job.state, targets, tensors, ahead))
        yield Source(model, result, updates, slots, job)


def _buffers(job: AggregationJob) -> Callable[[str], bool]:
    globs = job.aggregation.buffers if isinstance(job.aggregation, Aggregation) else ()
    return matcher(globs) if globs else lambda _: False
