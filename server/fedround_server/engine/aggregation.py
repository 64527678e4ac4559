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

from fedround_server.aggregators.rule import NoAggregate, StatefulRule, StepContext, Updates
from fedround_server.aggregators.server_optimizer import ServerOptimizer
from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import Aggregation, UpdateFacts
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.domain.training import IntegerTensors
from fedround_server.engine.deciding import Deciding
from fedround_server.engine.decision import Decision, bounded, inner_products, needs_products
from fedround_server.engine.exact import Combination, combine
from fedround_server.engine.facts import facts_of
from fedround_server.engine.format.dtypes import first_not_finite, is_finite, narrow, widen
from fedround_server.engine.format.tensors import blocks
from fedround_server.engine.format.verification import reading_ahead
from fedround_server.engine.integers import rounded_mean, take_heaviest, take_maximum
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.lora import Products
from fedround_server.engine.parts import Block
from fedround_server.engine.pool import Pool, computing
from fedround_server.engine.private import Private
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
        steps: How many aggregations have made each slot; one in which nothing took part does not count.
        report: What was found out about each update, in the order of the job.
    """

    made: VersionFile
    slots: Mapping[str, BlobRef]
    steps: Mapping[str, int]
    report: tuple[UpdateFacts, ...]


def aggregate(
    files: BlobFiles,
    job: AggregationJob,
    target: Path,
    slot_targets: Mapping[str, Path] | None = None,
    threads: int = 1,
) -> Aggregated:
    """Aggregates the updates of a round into a new file, forced to disk.

    Updates without examples are left out. If there are no others, the result is the model itself, and the state stays
    as it is.

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
    counted = _canonical_order(job)
    small = Deciding(files, job, job.aggregation)
    targets = slot_targets or {}
    large = {slot: path for slot, path in targets.items() if slot not in job.aggregation.small_slots}
    with (
        computing(threads) as pool,
        reading_ahead() as ahead,
        open_source(files, job, counted, large, ahead) as source,
    ):
        try:
            known = _known(source, job, job.aggregation, counted, pool)
            decision = small.decide(known)
        except NoAggregate as error:
            raise AggregationFailed(str(error)) from None
        elements = _Elements(source, job, job.aggregation, decision, known.weights)
        products = Products(source, job.aggregation.rule, known.weights, keep_non_finite=job.keep_non_finite)
        with source.result.writer(files, target) as writer:
            for name in source.result.inherited:
                for start, length in blocks(source.model.layout.manifest[name].num_numbers):
                    writer.write(source.model.block(name, start, length))
            for run in source.runs:
                if counted and run.first in products:
                    for block in products.tensor(run, pool):
                        writer.write(block)
                    continue
                for result in pool.map(elements.aggregate, source.blocks(run)):
                    writer.write(result.elements)
                    for slot, values in result.state.items():
                        source.slots.write(slot, values)
            made = writer.complete()
        steps = {slot: number + bool(counted) for slot, number in source.slots.steps.items()}
        facts = facts_of(job.aggregation.rule, len(job.updates), counted, decision, known)
        slots, small_steps = small.finish(targets, decision)
        return Aggregated(made, source.slots.finish() | slots, steps | small_steps, facts)


def _canonical_order(job: AggregationJob) -> list[int]:
    """Returns the indices of the updates that count, in an order in which rounding errors depend on them alone."""

    origins = [("" if origin.base is None else origin.base.sha256, origin.factor) for origin in job.origins]

    def key(index: int) -> tuple[object, ...]:
        # Of equal files, the reports and then the ids decide.
        others = (values[index] for values in (job.steps, job.losses, origins, job.user_ids) if values)
        return job.updates[index].sha256, job.weights[index], *others

    return sorted((index for index, weight in enumerate(job.weights) if weight), key=key)


def _known(
    source: Source, job: AggregationJob, aggregation: Aggregation, counted: Sequence[int], pool: Pool
) -> Updates:
    """Collects what the stages see of the updates; reads all of them if inner products are needed."""
    count = len(counted)
    products, kept = np.zeros((count, count)), np.zeros(count + 1)
    if count and needs_products(aggregation):
        slot = aggregation.kept_slot

        def multiply(block: Block) -> Tensor:
            before = None if slot is None else source.slots.read(slot, block.run, block.start, len(block))
            return inner_products(block, before, count)

        total = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        for part in pool.map(multiply, source.trained_blocks()):
            total.add_(part)
        products, kept = bounded(total)
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
        decision: Decision | Private | None,
        weights: Sequence[int],
    ) -> None:
        self._source = source
        self._job = job
        self._decision = decision
        self._weights = weights
        optimizer, rule = aggregation.server_optimizer, aggregation.rule
        self._optimizer = optimizer if isinstance(optimizer, ServerOptimizer) else None
        self._rule = rule if isinstance(rule, StatefulRule) else None
        self._rule_slots = aggregation.rule_slots
        self._kept = aggregation.kept_slot
        self._optimizer_slots = aggregation.optimizer_slots
        # What each slot contains before the first round.
        self._initial = dict.fromkeys(self._rule_slots.values(), 0.0)
        if self._kept is not None:
            self._initial[self._kept] = 0.0
        if self._optimizer is not None:
            self._initial |= {name: self._optimizer.initial(slot) for slot, name in self._optimizer_slots.items()}

    def aggregate(self, block: Block) -> _Result:
        """Returns elements of the result.

        Raises:
            AggregationFailed: The dtype cannot hold one.
        """
        if self._source.is_frozen(block.run):
            return _Result(block.stored)
        if block.run.dtype.is_floating:
            state: Mapping[str, Tensor] = {}
            if self._source.is_trained(block.run):
                result, state = self._trained(block)
            elif self._decision is None or isinstance(self._decision, Private):
                # Without noise, buffers would reveal something.
                result = block.model
            else:
                result = combine(block.updates(), Combination(self._weights, sum(self._weights)), block.model.dtype)
            if not is_finite(result):
                name = block.run.owner(block.start + first_not_finite(result))
                raise AggregationFailed(f"the aggregate of tensor {name!r} has values that its dtype cannot hold")
            return _Result(block.restored(result), state)
        if self._decision is None or isinstance(self._decision, Private):
            return _Result(block.stored)
        if block.run.first.endswith(COUNTER):
            return _Result(take_maximum(block.updates()))
        if self._job.integers is IntegerTensors.MEAN:
            return _Result(rounded_mean(block.updates(), self._weights))
        return _Result(take_heaviest(block.updates(), self._weights))

    def _trained(self, block: Block) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the elements to which all stages apply, and their state."""
        state = {slot: self._read(slot, block, initial) for slot, initial in self._initial.items()}
        if self._decision is None:
            result = block.model
        elif not state:
            result = self._decision.aggregate(block)
        else:
            delta = self._decision.difference(block, state[self._kept] if self._kept else None)
            if self._kept:
                state[self._kept] = delta.clone()
            moved: Tensor | None = delta
            if self._rule is not None:
                moved = self._step_of_rule(self._rule, block, delta, state)
            if self._optimizer is not None:
                moved = self._step(self._optimizer, delta if moved is None else moved, state)
            if moved is None:
                result = self._decision.aggregate(block)
            else:
                result = narrow(moved.add_(widen(block.model)), block.model.dtype)
        kept = {slot: as_kept(values, block.model.dtype) for slot, values in state.items()}
        for slot, values in kept.items():
            if not is_finite(values):
                name = block.run.owner(block.start + first_not_finite(values))
                raise AggregationFailed(f"the state {slot!r} of tensor {name!r} has values that its dtype cannot hold")
        return result, kept

    def _step_of_rule(
        self, rule: StatefulRule, block: Block, delta: Tensor, state: Mapping[str, Tensor]
    ) -> Tensor | None:
        count = len(self._weights)
        control = torch.zeros_like(delta) if rule.control is None else block.control()
        context = StepContext(count, max(count, self._job.population), control)
        return rule.step(delta, {slot: state[name] for slot, name in self._rule_slots.items()}, context)

    def _step(self, optimizer: ServerOptimizer, delta: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        names = self._optimizer_slots
        number = 1 + max(self._source.slots.steps[name] for name in names.values())
        return optimizer.step(delta, {slot: state[name] for slot, name in names.items()}, number)

    def _read(self, slot: str, block: Block, initial: float) -> Tensor:
        found = self._source.slots.read(slot, block.run, block.start, len(block))
        return torch.full((len(block),), initial, dtype=torch.float64) if found is None else found
