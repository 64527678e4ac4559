"""Aggregates a round: reads the updates block by block, across the borders of tensors, and writes the next model.

Memory is O(block x updates), independent of the size of the model.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import torch

from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.aggregators.rule import NoAggregate, Updates
from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import Aggregation, UpdateFacts
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.domain.partial_sum import MAX_NUM_EXAMPLES
from fedround_server.engine.computation import Computation, Spread
from fedround_server.engine.deciding import Deciding
from fedround_server.engine.decision import Linear, bounded, needs_products
from fedround_server.engine.elements import Elements, InnerProducts, Part
from fedround_server.engine.facts import facts_of
from fedround_server.engine.format.tensors import blocks
from fedround_server.engine.format.verification import reading_ahead
from fedround_server.engine.format.writer import bytes_of
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.lora import Products
from fedround_server.engine.partial_sums import write_sum
from fedround_server.engine.pool import computing
from fedround_server.engine.slots import SlotWriter
from fedround_server.engine.source import open_source


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
    spread: Spread | None = None,
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
        spread: Computes large aggregations in place of the threads. The result does not depend on it.

    Raises:
        AggregationFailed: The result has values that the model's dtype cannot hold, or the rule finds no result.
        BlobDamaged: The model, an update or the state is not what was stored.
    """
    if not isinstance(job.aggregation, Aggregation):
        raise TypeError(f"{job.aggregation} does not make a model")
    aggregation, targets = job.aggregation, slot_targets or {}
    small = Deciding(files, job, aggregation)
    large = {slot: targets[slot] for slot in aggregation.large_slots if slot in targets}
    with (
        computing(threads) as pool,
        reading_ahead() as ahead,
        open_source(files, job, ahead) as source,
        SlotWriter(source.slots, large) as state,
    ):
        computation = Computation(source, pool, spread)
        try:
            known = _known(job, aggregation, computation)
            decision = small.decide(known)
        except NoAggregate as error:
            raise AggregationFailed(str(error)) from None
        if isinstance(aggregation.rule, PartialSum):
            facts = facts_of(aggregation.rule, len(job.updates), source.counted, decision, known)
            return Aggregated(write_sum(files, target, computation, known.weights), {}, {}, facts)
        if job.relays and isinstance(decision, Linear):
            if sum(known.weights) > MAX_NUM_EXAMPLES:
                raise AggregationFailed(f"the updates have {sum(known.weights)} examples together, and may have 2^53")
            decision = replace(decision, is_nested=True)
        elements = Elements(job, aggregation, decision, known.weights)
        with source.result.writer(files, target) as writer:
            for name in source.result.inherited:
                for start, length in blocks(source.model.layout.manifest[name].num_numbers):
                    writer.write(source.model.block(name, start, length))
            for part in _parts(job, aggregation, elements, computation):
                writer.write(part.elements)
                for slot, values in part.state.items():
                    state.write(slot, values)
            made = writer.complete()
        steps = {slot: source.slots.steps[slot] + bool(source.counted) for slot in large}
        facts = facts_of(aggregation.rule, len(job.updates), source.counted, decision, known)
        slots, small_steps = small.finish(targets, decision)
        return Aggregated(made, state.finish() | slots, steps | small_steps, facts)


def _parts(
    job: AggregationJob, aggregation: Aggregation, elements: Elements, computation: Computation
) -> Iterator[Part]:
    """Yields the result, in order: tensors by products of matrices, and runs of others span by span."""
    source = computation.source
    products = Products(source, aggregation.rule, elements.weights, keep_non_finite=job.keep_non_finite)

    def is_product(index: int) -> bool:
        return bool(source.counted) and source.runs[index].first in products

    for in_products, indices in groupby(range(len(source.runs)), is_product):
        if in_products:
            for index in indices:
                for block in products.tensor(source.runs[index], computation.pool):
                    yield Part(bytes_of(block))
        else:
            yield from computation.map(elements, chain.from_iterable(map(source.spans, indices)))


def _known(job: AggregationJob, aggregation: Aggregation, computation: Computation) -> Updates:
    """Collects what the stages see of the updates; reads all of them if inner products are needed."""
    source = computation.source
    counted, count = source.counted, len(source.counted)
    products, kept = np.zeros((count, count)), np.zeros(count + 1)
    if count and needs_products(aggregation):
        total = np.zeros((count + 1, count + 1))
        for part in computation.map(InnerProducts(aggregation.kept_slot), source.trained_spans()):
            total += part
        products, kept = bounded(torch.from_numpy(total))
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
