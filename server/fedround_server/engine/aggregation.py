"""Aggregates a round: reads the updates block by block, across the borders of tensors, and writes the next model.

Memory is O(block x updates), independent of the size of the model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedround_server.aggregators.rule import NoAggregate, Updates
from fedround_server.aggregators.server_optimizer import ServerOptimizer
from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import KEPT, Aggregation, UpdateFacts
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.domain.training import IntegerTensors
from fedround_server.engine.decision import Decision, decide, inner_products, needs_products
from fedround_server.engine.exact import Combination, combine
from fedround_server.engine.facts import facts_of
from fedround_server.engine.format.dtypes import first_not_finite, is_finite, narrow, widen
from fedround_server.engine.format.tensors import blocks
from fedround_server.engine.format.verification import reading_ahead
from fedround_server.engine.integers import rounded_mean, take_heaviest, take_maximum
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.parts import Block
from fedround_server.engine.pool import Pool, computing
from fedround_server.engine.slots import as_kept
from fedround_server.engine.source import Source, open_source

COUNTER = "num_batches_tracked"
"""BatchNorm counts its batches; the count of the update that was trained most is the meaningful one."""


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The result of an aggregation.

    Attributes:
        made: The file, or a base with the file as its delta.
        slots: The new state: files by slot.
        report: What was found out about each update, in the order of the job.
    """

    made: VersionFile
    slots: Mapping[str, BlobRef]
    report: tuple[UpdateFacts, ...]


def aggregate(
    files: BlobFiles,
    job: AggregationJob,
    target: Path,
    slot_targets: Mapping[str, Path] | None = None,
    threads: int = 1,
) -> Aggregated:
    """Aggregates the updates of a round into a new file, forced to disk.

    Updates without examples are left out. If there are no others, the result is the model itself.

    Args:
        files: Where the stored files are.
        job: What to aggregate.
        target: The path of the new file.
        slot_targets: The paths of the files of the new state, one for each slot of the aggregation.
        threads: How many threads compute, >= 1. The result does not depend on it.

    Raises:
        AggregationFailed: The result has values that the model's dtype cannot hold, or the rule finds no result.
        BlobDamaged: The model, an update or the state is not what was stored.
    """
    if not isinstance(job.aggregation, Aggregation):
        raise TypeError(f"{job.aggregation} does not make a model")
    # Canonical order: rounding errors depend on the updates, and not on who sent them.
    counted = sorted((i for i, weight in enumerate(job.weights) if weight), key=lambda i: job.updates[i].sha256)
    with (
        computing(threads) as pool,
        reading_ahead() as ahead,
        open_source(files, job, counted, slot_targets or {}, ahead) as source,
    ):
        known = _known(source, job, job.aggregation, counted, pool)
        try:
            decision = decide(job.aggregation, known) if counted else None
        except NoAggregate as error:
            raise AggregationFailed(str(error)) from None
        elements = _Elements(source, job, job.aggregation, decision, known.weights)
        with source.result.writer(files, target) as writer:
            for name in source.result.inherited:
                for start, length in blocks(source.model.layout.manifest[name].num_numbers):
                    writer.write(source.model.block(name, start, length))
            for run in source.runs:
                for result in pool.map(elements.aggregate, source.blocks(run)):
                    writer.write(result.elements)
                    for slot, values in result.state.items():
                        source.slots.write(slot, values)
            made = writer.complete()
        return Aggregated(made, source.slots.finish(), facts_of(len(job.updates), counted, decision, known))


def _known(
    source: Source, job: AggregationJob, aggregation: Aggregation, counted: Sequence[int], pool: Pool
) -> Updates:
    """Collects what the stages see of the updates; reads all of them if inner products are needed."""
    count = len(counted)
    products, kept = np.zeros((count, count)), np.zeros(count + 1)
    if count and needs_products(aggregation):
        slot = f"{aggregation.rule.name}/{KEPT}" if aggregation.rule.keeps_aggregate else None

        def multiply(block: Block) -> Tensor:
            before = None if slot is None else source.slots.read(slot, block.run, block.start, len(block))
            return inner_products(block, before, count)

        total = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        for part in pool.map(multiply, source.trained_blocks()):
            total.add_(part)
        products, kept = total[:count, :count].numpy(), total[count].numpy()
    digests = [job.updates[index].sha256 for index in counted]
    return Updates(
        user_ids=tuple(job.user_ids[index] for index in counted) if job.user_ids else (),
        weights=tuple(job.weights[index] for index in counted),
        products=products,
        kept_products=kept,
        steps=tuple(job.steps[index] for index in counted) if job.steps else (),
        losses=tuple(job.losses[index] for index in counted) if job.losses else (),
        digest=hashlib.sha256(" ".join(digests).encode()).hexdigest(),
    )


@dataclass(frozen=True, slots=True)
class _Result:
    """Elements of the result: shape (elements,), in the model's dtype; and their state by slot, as it is kept."""

    elements: Tensor
    state: Mapping[str, Tensor] = field(default_factory=dict)


class _Elements:
    """Aggregates blocks, once it is decided how. Several threads may use it."""

    def __init__(
        self,
        source: Source,
        job: AggregationJob,
        aggregation: Aggregation,
        decision: Decision | None,
        weights: Sequence[int],
    ) -> None:
        self._source = source
        self._job = job
        self._decision = decision
        self._weights = weights
        optimizer = aggregation.server_optimizer
        self._optimizer = optimizer if isinstance(optimizer, ServerOptimizer) else None
        self._kept = f"{aggregation.rule.name}/{KEPT}" if aggregation.rule.keeps_aggregate else None

    def aggregate(self, block: Block) -> _Result:
        """Returns elements of the result.

        Raises:
            AggregationFailed: The dtype cannot hold one.
        """
        if block.run.dtype.is_floating:
            state: Mapping[str, Tensor] = {}
            if self._source.is_trained(block.run):
                result, state = self._trained(block)
            elif self._decision is None:
                result = block.model
            else:
                result = combine(block.updates(), Combination(self._weights, sum(self._weights)), block.model.dtype)
            if not is_finite(result):
                name = block.run.owner(block.start + first_not_finite(result))
                raise AggregationFailed(f"the aggregate of tensor {name!r} has values that its dtype cannot hold")
            return _Result(block.restored(result), state)
        if self._decision is None:
            return _Result(block.stored)
        if block.run.first.endswith(COUNTER):
            return _Result(take_maximum(block.updates()))
        if self._job.integers is IntegerTensors.MEAN:
            return _Result(rounded_mean(block.updates(), self._weights))
        return _Result(take_heaviest(block.updates(), self._weights))

    def _trained(self, block: Block) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the elements to which all stages apply, and their state."""
        kept = self._read(self._kept, block) if self._kept else None
        if self._optimizer is None and self._kept is None:
            return block.model if self._decision is None else self._decision.aggregate(block), {}
        if self._decision is None:
            delta = torch.zeros(len(block), dtype=torch.float64)
        else:
            delta = self._decision.difference(block, kept)
        dtype = block.model.dtype
        state = {self._kept: as_kept(delta, dtype)} if self._kept else {}
        if self._optimizer is not None:
            delta, made = self._step(self._optimizer, block, delta)
            state |= {slot: as_kept(values, dtype) for slot, values in made.items()}
        return narrow(delta.add_(widen(block.model)), dtype), state

    def _step(self, optimizer: ServerOptimizer, block: Block, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        names = {slot: f"{optimizer.name}/{slot}" for slot in optimizer.slots}
        state = {}
        for slot, name in names.items():
            found = self._read(name, block)
            state[slot] = torch.full_like(delta, optimizer.initial(slot)) if found is None else found
        if self._decision is not None:
            delta = optimizer.step(delta, state, self._job.state.steps + 1)
        return delta, {name: state[slot] for slot, name in names.items()}

    def _read(self, slot: str, block: Block) -> Tensor | None:
        return self._source.slots.read(slot, block.run, block.start, len(block))
