"""Adapters that are aggregated by the products of their matrices, one after the other."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fedround_server.aggregators.lora import LoraStack, Product, ProductRule, mean_product
from fedround_server.aggregators.rule import NoAggregate
from fedround_server.domain.adapters import AdapterPair
from fedround_server.domain.aggregation import Rule
from fedround_server.engine.format.dtypes import is_finite, narrow, widen
from fedround_server.engine.format.runs import Run
from fedround_server.engine.format.tensors import BLOCK
from fedround_server.engine.jobs import AggregationFailed
from fedround_server.engine.parts import Block
from fedround_server.engine.pool import Pool
from fedround_server.engine.source import Source


class Products:
    """The tensors of a result that a rule for products of adapters makes.

    Memory is that of the factors of one adapter in all updates, in float64, besides new matrices that were computed
    with the other one of their adapter and are not written yet.
    """

    def __init__(self, source: Source, rule: Rule, weights: Sequence[int], *, keep_non_finite: bool) -> None:
        """Computes nothing yet.

        Args:
            source: The model and the updates.
            rule: The rule; one of another sort makes none.
            weights: num_examples of each update, >= 1.
            keep_non_finite: Whether NaN and Inf of the weights stay as they are.
        """
        self._source = source
        self._rule = rule
        self._weights = weights
        self._keep_non_finite = keep_non_finite
        self._pairs = {name: pair for pair in source.adapters.pairs for name in pair.names}
        self._waiting: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        """Returns whether a tensor is one of them."""
        return name in self._pairs or name in self._source.adapters.merged

    def tensor(self, run: Run, pool: Pool) -> Iterator[Tensor]:
        """Yields the blocks of a tensor: shape (elements,), in the model's dtype.

        Args:
            run: The tensor.
            pool: Computes the blocks of weights.

        Raises:
            AggregationFailed: The dtype cannot hold an element, or the rule finds no result.
        """
        merged = self._source.adapters.merged.get(run.first)
        if merged is not None:
            yield from self._weight(run, merged, pool)
            return
        if run.first not in self._waiting:
            self._renew(self._pairs[run.first])
        yield self._waiting.pop(run.first)

    def _renew(self, pair: AdapterPair) -> None:
        """Computes the next matrices of an adapter."""
        if not isinstance(self._rule, ProductRule):
            raise TypeError(f"{self._rule.name} does not aggregate products")
        a, b = (widen(self._source.model.tensor(name)).double().flatten(1) for name in pair.names)
        try:
            made = self._rule.renewed(a, b, partial(self._product, pair))
        except NoAggregate as error:
            raise AggregationFailed(f"{error}: those of {pair.a!r}") from None
        for name, values in zip(pair.names, made, strict=True):
            self._waiting[name] = _narrowed(name, values.flatten(), self._source.model.block(name, 0, 0).dtype)

    def _product(self, pair: AdapterPair) -> Product:
        source = self._source

        def matrices(index: int) -> tuple[Tensor, Tensor]:
            return source.matrix(index, pair.a), source.matrix(index, pair.b)

        updates = map(matrices, range(len(self._weights)))
        return mean_product(updates, self._weights, sum(source.ranks(pair.a)))

    def _weight(self, run: Run, pair: AdapterPair, pool: Pool) -> Iterator[Tensor]:
        """Yields the blocks of a weight, to which the product of an adapter is added."""
        if not isinstance(self._rule, LoraStack):
            raise TypeError(f"{self._rule.name} does not merge products")
        scaling = self._rule.scaling
        product = self._product(pair)
        outputs = len(product.left)
        inputs = run.num_numbers // outputs
        count = max(1, BLOCK // inputs)

        def add(start: int) -> Tensor:
            rows = product.rows(start, min(count, outputs - start))
            first, length = start * inputs, len(rows) * inputs
            block = Block(self._source.model, [], run, first, length, keep_non_finite=self._keep_non_finite)
            total = rows.flatten().mul(scaling).add_(widen(block.model).double())
            return block.restored(_narrowed(run.first, total, block.stored.dtype))

        yield from pool.map(add, range(0, outputs, count))


def _narrowed(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    result = narrow(values, dtype)
    if not is_finite(result):
        raise AggregationFailed(f"the aggregate of tensor {name!r} has values that its dtype cannot hold")
    return result
