"""What is computed of each span of an aggregation: pure functions of the files, which can be sent to any process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedround_server.aggregators.rule import StatefulRule, StepContext
from fedround_server.aggregators.server_optimizer import ServerOptimizer
from fedround_server.domain.aggregation import Aggregation, is_counter
from fedround_server.domain.training import IntegerTensors
from fedround_server.engine.decision import Decision, Matrix, inner_products
from fedround_server.engine.exact import Combination, combine
from fedround_server.engine.format.dtypes import first_not_finite, is_finite, narrow, widen
from fedround_server.engine.format.writer import Bytes, bytes_of
from fedround_server.engine.integers import rounded_mean, take_heaviest, take_maximum
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.parts import Block
from fedround_server.engine.private import Private
from fedround_server.engine.slots import as_kept
from fedround_server.engine.source import Source, Span


@dataclass(frozen=True, slots=True)
class InnerProducts:
    """What spans contribute to the inner products of the updates: shape (count + 1, count + 1).

    Attributes:
        kept_slot: The slot with the difference that the round before has made; None if there is none.
    """

    kept_slot: str | None

    def __call__(self, source: Source, span: Span) -> Matrix:
        """Returns what a span contributes."""
        block, slot = source.block(span), self.kept_slot
        kept = None if slot is None else source.slots.read(slot, block.run, block.start, len(block))
        products: Matrix = inner_products(block, kept, len(source.counted)).numpy()
        return products


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a result: the bytes of its elements in the model's dtype, and of their state by slot."""

    elements: Bytes
    state: Mapping[str, Bytes] = field(default_factory=dict)


class Elements:
    """Aggregates spans, once it is decided how. Several threads may use it.

    Attributes:
        weights: num_examples of each update that counts.
    """

    def __init__(
        self,
        job: AggregationJob,
        aggregation: Aggregation,
        decision: Decision | Private | None,
        weights: Sequence[int],
    ) -> None:
        """Computes nothing yet.

        Args:
            job: The job.
            aggregation: Its aggregation.
            decision: What was decided; None if no update counts.
            weights: num_examples of each update that counts.
        """
        self.weights = weights
        self._integers = job.integers
        self._population = job.population
        self._decision = decision
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

    def __call__(self, source: Source, span: Span) -> Part:
        """Returns a part of the result.

        Raises:
            AggregationFailed: The dtype cannot hold an element.
        """
        block = source.block(span)
        result, state = self._aggregate(source, block)
        return Part(bytes_of(result), {slot: bytes_of(values) for slot, values in state.items()})

    def _aggregate(self, source: Source, block: Block) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns elements of the result, in the model's dtype, and their state by slot, as it is kept."""
        if source.is_frozen(block.run):
            return block.stored, {}
        if block.run.dtype.is_floating:
            state: Mapping[str, Tensor] = {}
            if source.is_trained(block.run):
                result, state = self._trained(source, block)
            elif self._decision is None or isinstance(self._decision, Private):
                # Without noise, buffers would reveal something.
                result = block.model
            else:
                vectors, coefficients = block.summands(self.weights)
                result = combine(vectors, Combination(coefficients, sum(self.weights)), block.model.dtype)
            if not is_finite(result):
                name = block.run.owner(block.start + first_not_finite(result))
                raise AggregationFailed(f"the aggregate of tensor {name!r} has values that its dtype cannot hold")
            return block.restored(result), state
        if self._decision is None or isinstance(self._decision, Private):
            return block.stored, {}
        if is_counter(block.run.first):
            return take_maximum(block.updates()), {}
        if self._integers is IntegerTensors.MEAN:
            return rounded_mean(block.updates(), self.weights), {}
        return take_heaviest(block.updates(), self.weights), {}

    def _trained(self, source: Source, block: Block) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the elements to which all stages apply, and their state."""
        state = {slot: _read(source, slot, block, initial) for slot, initial in self._initial.items()}
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
                moved = self._step(source, self._optimizer, delta if moved is None else moved, state)
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
        count = len(self.weights)
        control = torch.zeros_like(delta) if rule.control is None else block.control()
        context = StepContext(count, max(count, self._population), control)
        return rule.step(delta, {slot: state[name] for slot, name in self._rule_slots.items()}, context)

    def _step(self, source: Source, optimizer: ServerOptimizer, delta: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        names = self._optimizer_slots
        number = 1 + max(source.slots.steps[name] for name in names.values())
        return optimizer.step(delta, {slot: state[name] for slot, name in names.items()}, number)


def _read(source: Source, slot: str, block: Block, initial: float) -> Tensor:
    found = source.slots.read(slot, block.run, block.start, len(block))
    return torch.full((len(block),), initial, dtype=torch.float64) if found is None else found
