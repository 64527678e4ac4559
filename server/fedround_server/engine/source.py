"""The model and the updates of a round, opened and divided into blocks."""

import enum
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.adapters import NO_ADAPTERS, Adapters
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.control import CONTROL, control_tensors
from fedround_server.domain.model import Manifest
from fedround_server.domain.partial_sum import COMPONENTS, components_of, sum_tensors
from fedround_server.domain.tensor_selection import matcher
from fedround_server.engine.format.assembly import in_order
from fedround_server.engine.format.dtypes import widen
from fedround_server.engine.format.layouts import Layouts
from fedround_server.engine.format.prefixed import unprefixed
from fedround_server.engine.format.runs import Run, runs
from fedround_server.engine.format.tensors import BLOCK, Tensors, open_blobs
from fedround_server.engine.format.versions import open_version
from fedround_server.engine.jobs import AggregationJob, UpdateOrigin
from fedround_server.engine.parts import Block, OpenedUpdate
from fedround_server.engine.result import Result, plan
from fedround_server.engine.slots import Slots, open_slots

FEW = 8
"""More updates than this have smaller blocks, so that they take no more memory."""
SMALLEST_BLOCK = 4 * 1024


class Treatment(enum.Enum):
    """What is done with a tensor."""

    TRAINED = enum.auto()
    """All stages of the aggregation apply."""
    BUFFER = enum.auto()
    """It is averaged."""
    FROZEN = enum.auto()
    """It stays as it is."""


@dataclass(frozen=True, slots=True)
class Span:
    """Adjacent numbers of an aggregation, few enough to be processed at a time. The same in every process.

    Attributes:
        run: The index of their run in `Source.runs`.
        start: Index of the first one in the run.
        length: How many.
    """

    run: int
    start: int
    length: int


class Source:
    """The opened files of an aggregation.

    Attributes:
        counted: The indices of the updates that take part.
        updates: Those updates.
        model: The model that the round started from.
        adapters: What the rule does with adapters.
        result: What is written.
        slots: The state.
        runs: The tensors that are aggregated, in the order of the result.
    """

    def __init__(
        self,
        model: Tensors,
        result: Result,
        counted: Sequence[int],
        updates: Sequence[OpenedUpdate],
        slots: Slots,
        job: AggregationJob,
    ) -> None:
        self.counted = counted
        self.model = model
        self.adapters = _adapters(job, model)
        self.result = result
        self.slots = slots
        self.updates = updates
        self._keep_non_finite = job.keep_non_finite
        self._block_sizes = job.transport.block_sizes(result.layout.manifest)
        self._treatment = _treatments(job, self.adapters)
        files = [update.file for update in updates]
        bases = [update.base for update in updates if update.base is not None]
        layouts = [file.layout for file in (*files, *bases, *slots.found.values())]
        if _has_control(job):
            layouts += [unprefixed(one, CONTROL) for one in {id(file.layout): file.layout for file in files}.values()]
        self.runs: Sequence[Run] = list(runs(result.layout, layouts, apart=self._treatment))
        lengths = [run.num_numbers for run in self.runs]
        self._places = dict(zip((run.first for run in self.runs), accumulate(lengths, initial=0), strict=False))

    def is_trained(self, run: Run) -> bool:
        """Returns whether the stages of the aggregation apply to a run: it is floating, and has no buffers."""
        return run.dtype.is_floating and self._treatment(run.first) is Treatment.TRAINED

    def is_frozen(self, run: Run) -> bool:
        """Returns whether a run stays as it is."""
        return self._treatment(run.first) is Treatment.FROZEN

    def ranks(self, name: str) -> list[int]:
        """Returns the rank that a matrix A has in each update."""
        return [update.file.layout.manifest[name].shape[0] for update in self.updates]

    def matrix(self, index: int, name: str) -> Tensor:
        """Returns a tensor of an update, or of what its difference makes of the model.

        Returns:
            Shape (first size, product of the others), float64.
        """
        update = self.updates[index]
        spec, stored = update.file.layout.manifest[name], self.model.layout.manifest[name]
        if spec.dtype is stored.dtype:
            numbers = update.file.block(name, 0, spec.num_numbers)
        else:
            whole = Run(stored.dtype, [name], [stored.num_numbers])
            block_size = self._block_sizes.get(name, 0)
            (numbers,) = Block(self.model, [update], whole, 0, stored.num_numbers, block_size).updates()
        return widen(numbers).double().reshape(spec.shape[0], -1)

    def spans(self, index: int) -> Iterator[Span]:
        """Divides the run of an index."""
        size = max(SMALLEST_BLOCK, BLOCK * FEW // max(FEW, len(self.updates)))
        total = self.runs[index].num_numbers
        for start in range(0, total, size):
            yield Span(index, start, min(size, total - start))

    def trained_spans(self) -> Iterator[Span]:
        """Yields the spans to which the stages of the aggregation apply."""
        for index, run in enumerate(self.runs):
            if self.is_trained(run):
                yield from self.spans(index)

    def block(self, span: Span) -> Block:
        """Reads the numbers of the model in a span. Several threads may do so."""
        run = self.runs[span.run]
        return Block(
            self.model,
            self.updates,
            run,
            span.start,
            span.length,
            self._block_sizes.get(run.first, 0),
            self._places[run.first] + span.start,
            is_trained=self.is_trained(run),
            keep_non_finite=self._keep_non_finite,
        )


@contextmanager
def open_source(files: BlobFiles, job: AggregationJob, ahead: Executor) -> Iterator[Source]:
    """Opens the files of an aggregation.

    Args:
        files: Where the stored files are.
        job: The aggregation.
        ahead: Verifies what is likely to be read next.

    Raises:
        BlobDamaged: A file is not what was stored.
    """
    counted = _canonical_order(job)
    with ExitStack() as stack:
        model = stack.enter_context(open_version(files, job.model, ahead))
        result = plan(files, job, model)
        manifest = job.tensors.trained(model.layout.manifest)
        adapters = _adapters(job, model)
        layouts = Layouts(*_expected(job, manifest), adapters=adapters.pairs)
        origins = job.origins or (UpdateOrigin(),) * len(job.updates)
        bases = {
            origins[index].base: stack.enter_context(open_version(files, base, ahead))
            for index in counted
            if (base := origins[index].base) is not None
        }
        blobs = [job.updates[index] for index in counted]
        opened = stack.enter_context(open_blobs(files, blobs, layouts, ahead))
        updates = [
            OpenedUpdate(
                file,
                None if origins[index].base is None else bases[origins[index].base],
                origins[index].factor,
                origins[index].replaces_model,
                components_of(file.layout.manifest, manifest) if job.relays else 0,
                job.weights[index],
            )
            for index, file in zip(counted, opened, strict=True)
        ]
        treatment = _treatments(job, adapters)
        trained = [name for name in in_order(result.layout) if treatment(name) is Treatment.TRAINED]
        tensors = {name: manifest[name] for name in trained if manifest[name].dtype.is_floating}
        large = job.aggregation.large_slots if isinstance(job.aggregation, Aggregation) else ()
        slots = stack.enter_context(open_slots(files, job.state, large, tensors, ahead))
        yield Source(model, result, counted, updates, slots, job)


def _canonical_order(job: AggregationJob) -> list[int]:
    """Returns the indices of the updates that count, in an order in which rounding errors depend on them alone."""

    origins = [("" if origin.base is None else origin.base.sha256, origin.factor) for origin in job.origins]

    def key(index: int) -> tuple[object, ...]:
        # Of equal files, the reports and then the ids decide.
        others = (values[index] for values in (job.steps, job.losses, origins, job.user_ids) if values)
        return job.updates[index].sha256, job.weights[index], *others

    return sorted((index for index, weight in enumerate(job.weights) if weight), key=key)


def _adapters(job: AggregationJob, model: Tensors) -> Adapters:
    if not isinstance(job.aggregation, Aggregation):
        return NO_ADAPTERS
    manifest = model.layout.manifest
    return job.aggregation.rule.adapters(manifest, job.tensors.trained(manifest))


def _expected(job: AggregationJob, manifest: Manifest) -> Sequence[Manifest]:
    """Returns the tensors that an update may have."""
    own = [manifest, job.transport.encoded(manifest)]
    if job.relays:
        own += [sum_tensors(manifest, components) for components in COMPONENTS]
    if not isinstance(job.aggregation, Aggregation) or not _has_control(job):
        return own
    control = control_tensors(job.aggregation, manifest)
    return [{**tensors, **control} for tensors in own]


def _has_control(job: AggregationJob) -> bool:
    return isinstance(job.aggregation, Aggregation) and job.aggregation.rule.control is not None


def _treatments(job: AggregationJob, adapters: Adapters) -> Callable[[str], Treatment | str]:
    """Returns what returns how a tensor is treated; its own name if by itself."""
    globs = job.aggregation.buffers if isinstance(job.aggregation, Aggregation) else ()
    is_buffer = matcher(globs) if globs else lambda _: False
    alone = {name for pair in adapters.pairs for name in pair.names} | adapters.merged.keys()

    def treatment(name: str) -> Treatment | str:
        if name in alone:
            return name
        if name in adapters.frozen:
            return Treatment.FROZEN
        return Treatment.BUFFER if is_buffer(name) else Treatment.TRAINED

    return treatment
