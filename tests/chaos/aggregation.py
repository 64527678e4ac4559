"""What an aggregation with stages is to make of updates: an implementation of its own, from the papers, in float64.

Means, medians and optimizers are the same bits as the server's. What depends on inner products is close: their sums may
be rounded in another order.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chaos.tensors import FLOATS, Tensor, Tensors, aggregate, narrow

Array = np.ndarray[Any, np.dtype[np.float64]]
BY_PRODUCTS = ("geometric_median", "centered_clipping")
KEPT = {"centered_clipping": "centered_clipping/aggregate", "scaffold": "scaffold/c", "fed_dyn": "fed_dyn/h"}
"""The files of the state of rules."""
STAGES = {"clipping", "mixing", "server_optimizer"}


def is_exact(aggregation: Mapping[str, Any]) -> bool:
    """Returns whether `expected` makes the same bits as the server."""
    # Of a linear combination with the model, only that of the server is exact.
    is_partial = aggregation["options"].get("learning_rate", 1) != 1
    staged = aggregation.keys() & {"clipping", "mixing"}
    return aggregation["algorithm"] not in BY_PRODUCTS and not staged and not is_partial


def is_mean(aggregation: Mapping[str, Any]) -> bool:
    """Returns whether the weighted mean is all that is made."""
    return aggregation["algorithm"] in ("fed_avg", "fed_prox", "fed_dc") and not aggregation.keys() & STAGES


def is_private(aggregation: Mapping[str, Any]) -> bool:
    """Returns whether what is made has noise."""
    return "differential_privacy" in aggregation


def slots(aggregation: Mapping[str, Any]) -> set[str]:
    """Returns the names of the files of its state."""
    optimizer = aggregation.get("server_optimizer", {}).get("name")
    kept = {KEPT[aggregation["algorithm"]]} if aggregation["algorithm"] in KEPT else set()
    if aggregation.get("clipping", {}).get("name") == "adaptive":
        kept.add("adaptive/norm")
    if aggregation.get("differential_privacy", {}).get("options", {}).get("tree"):
        kept.add("tree/key")
    return kept | {"sgd": {"sgd/v"}, None: set()}.get(optimizer, {f"{optimizer}/m", f"{optimizer}/v"})


def resumed(aggregation: Mapping[str, Any], state: Mapping[str, Tensors], trained: Sequence[str]) -> set[str]:
    """Returns the slots that go on: a stage begins anew if one of its slots is missing or has other tensors."""
    fitting = {slot for slot, found in state.items() if found.keys() == set(trained)}
    anew = {slot.partition("/")[0] for slot in slots(aggregation) - fitting}
    return {slot for slot in fitting if slot.partition("/")[0] not in anew}


def expected(
    aggregation: Mapping[str, Any],
    updates: Sequence[tuple[str, Tensors, int, Tensors]],
    model: Tensors,
    state: Mapping[str, Tensors],
    steps: Mapping[str, int],
    population: int,
) -> tuple[Tensors, dict[str, Tensors], dict[str, int]]:
    """Returns the trained tensors of the next version, its state, and the steps of that.

    Args:
        aggregation: As the database has it.
        updates: The digest, the tensors, the number of examples and the change of the control variate of each, at least
            one of which has examples.
        model: What they started from.
        state: The state before by slot; empty if it begins anew.
        steps: How many aggregations have made each slot.
        population: How many participants could have been asked.
    """
    updates = sorted((update for update in updates if update[2]), key=lambda update: update[0])
    inputs, weights = [update[1] for update in updates], [update[2] for update in updates]
    made, unweighted = aggregate(inputs, weights), aggregate(inputs, [1] * len(inputs))
    trained = [name for name, tensor in made.items() if tensor.dtype in FLOATS]
    if is_mean(aggregation):
        return made, {}, {}
    stages = _Stages(aggregation, [update[0] for update in updates], weights)
    base = _joined(model, trained)
    values = np.stack([_joined(one, trained) for one in inputs])
    before = {slot: _joined(state[slot], trained) for slot in resumed(aggregation, state, trained)}
    steps = {slot: number for slot, number in steps.items() if slot in before}
    control = np.zeros_like(base)
    if aggregation["algorithm"] == "scaffold":
        for update in updates:
            control += _joined(update[3], trained)
    total, after = stages.apply(base, values, before, steps, control / max(len(updates), population), population)
    ends = np.cumsum([len(made[name].values) for name in trained])
    kept: dict[str, dict[str, Tensor]] = {slot: {} for slot in after}
    result = dict(made)
    for name, end in zip(trained, ends, strict=True):
        dtype, shape, place = made[name].dtype, made[name].shape, slice(end - len(made[name].values), end)
        result[name] = _tensor(dtype, shape, total[place])
        if aggregation["algorithm"] == "scaffold" and is_exact(aggregation) and "server_optimizer" not in aggregation:
            result[name] = unweighted[name]
        for slot, numbers in after.items():
            kept[slot][name] = _tensor("F64" if dtype == "F64" else "F32", shape, numbers[place])
    return result, dict(kept), {slot: steps.get(slot, 0) + 1 for slot in kept}


def _joined(tensors: Tensors, names: Sequence[str]) -> Array:
    """Returns the numbers of tensors one after the other; there may be none."""
    return np.concatenate([np.zeros(0), *(np.array(tensors[name].values, np.float64) for name in names)])


def _tensor(dtype: str, shape: tuple[int, ...], numbers: Array) -> Tensor:
    return Tensor(dtype, shape, tuple(narrow(value, dtype) for value in numbers.tolist()))


class _Stages:
    """The stages of an aggregation of a round."""

    def __init__(self, aggregation: Mapping[str, Any], digests: Sequence[str], weights: Sequence[int]) -> None:
        self._rule, self._options = aggregation["algorithm"], aggregation["options"]
        self._clipping, self._mixing = aggregation.get("clipping"), aggregation.get("mixing")
        self._optimizer = aggregation.get("server_optimizer")
        self._digests = digests
        self._weights = np.array(weights, np.float64)

    def apply(
        self,
        base: Array,
        values: Array,
        state: Mapping[str, Array],
        steps: Mapping[str, int],
        control: Array,
        population: int,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the elements of the version, and those of its state."""
        differences = values - base
        if self._clipping:
            norms, most = np.sqrt((differences**2).sum(axis=1)), self._clipping["options"]["norm"]
            differences = differences * (most / np.maximum(norms, most))[:, None]
        if self._mixing:
            differences = self._matrix(differences) @ differences
        staged = self._clipping or self._mixing
        after: dict[str, Array] = {}
        kept = KEPT.get(self._rule, "")
        if self._rule in ("median", "trimmed_mean"):
            reduced = self._reduce(base + differences if staged else values)
            if not self._optimizer:
                return reduced, after
            delta = reduced - base
        elif self._rule == "centered_clipping":
            after[kept] = delta = self._centered(differences, state.get(kept, np.zeros_like(base)))
        elif self._rule == "scaffold":
            delta = self._sum(differences, [self._options["learning_rate"]] * len(values)) / len(values)
            after[kept] = state.get(kept, np.zeros_like(base)) + control
        elif self._rule == "fed_dyn":
            alpha, mean = self._options["alpha"], self._sum(differences, [1.0] * len(values)) / len(values)
            part = len(values) / max(len(values), population)
            after[kept] = state.get(kept, np.zeros_like(base)) - mean * (alpha * part)
            delta = mean - after[kept] / alpha
        else:
            delta = self._mean(differences)
        if self._optimizer:
            delta = self._step(delta, state, steps, after)
        return delta + base, after

    def _matrix(self, differences: Array) -> Array:
        """Returns the coefficients of the mixing stage."""
        count, options = len(differences), self._mixing["options"]  # type: ignore[index]
        if self._mixing["name"] == "nearest_neighbor":  # type: ignore[index]
            kept, rows = max(1, count - options["f"]), []
            for index in range(count):
                distances = ((differences - differences[index]) ** 2).sum(axis=1).tolist()
                nearest = sorted(range(count), key=lambda other: (distances[other], other != index, other))[:kept]
                rows.append([1 / kept if other in nearest else 0.0 for other in range(count)])
            return np.array(rows)
        order, size = list(range(count)), options["size"]
        digest = hashlib.sha256(" ".join(self._digests).encode()).hexdigest()
        random.Random(f"{options['seed']} {digest}").shuffle(order)
        buckets = [order[start : start + size] for start in range(0, count, size)]
        return np.array([[1 / len(one) if index in one else 0.0 for index in range(count)] for one in buckets])

    def _reduce(self, values: Array) -> Array:
        ordered = np.sort(values, axis=0)
        if self._rule == "median":
            middle = len(ordered) // 2
            return ordered[middle] if len(ordered) % 2 else ordered[middle - 1] * 0.5 + ordered[middle] * 0.5
        cut = int(self._options["beta"] * len(ordered))
        kept = ordered[cut : len(ordered) - cut]
        total = kept[0].copy()
        for row in kept[1:]:
            total += row
        return np.asarray(total / len(kept))

    def _mean(self, differences: Array) -> Array:
        """Returns a weighted mean: for the geometric median, with the weights of the last iteration."""
        weights = np.ones(len(differences)) if self._mixing else self._weights
        if self._rule == "geometric_median":
            point = np.zeros_like(differences[0])
            first = weights
            for _ in range(self._options["iterations"]):
                distances = np.sqrt(((differences - point) ** 2).sum(axis=1))
                weights = first / np.maximum(distances, self._options["nu"])
                point = (weights[:, None] * differences).sum(axis=0) / weights.sum()
        return np.asarray(self._sum(differences, weights.tolist()) / math.fsum(weights.tolist()))

    def _sum(self, differences: Array, weights: Sequence[float]) -> Array:
        total = np.zeros_like(differences[0])
        for difference, weight in zip(differences, weights, strict=True):
            total += difference * weight
        return total

    def _centered(self, differences: Array, center: Array) -> Array:
        for _ in range(self._options["iterations"]):
            around = differences - center
            norms = np.sqrt((around**2).sum(axis=1))
            scales = np.minimum(1, self._options["tau"] / np.maximum(norms, self._options["tau"]))
            center = center + (around * scales[:, None]).mean(axis=0)
        return center

    def _step(
        self, delta: Array, state: Mapping[str, Array], steps: Mapping[str, int], after: dict[str, Array]
    ) -> Array:
        """Makes a step of the server optimizer, and puts what it remembers into `after`."""
        assert self._optimizer is not None
        name, options = self._optimizer["name"], self._optimizer["options"]
        rate = options["learning_rate"]
        if name == "sgd":
            after["sgd/v"] = state.get("sgd/v", np.zeros_like(delta)) * options["momentum"] + delta
            return np.asarray(after["sgd/v"] * rate)
        beta1, tau = options["beta1"], options["tau"]
        mean = state.get(f"{name}/m", np.zeros_like(delta)) * beta1 + delta * (1 - beta1)
        variance, square = state.get(f"{name}/v", np.full_like(delta, tau * tau)), delta * delta
        if name == "adagrad":
            variance = variance + square
        elif name == "adam":
            variance = variance * options["beta2"] + square * (1 - options["beta2"])
        else:
            variance = variance - square * (1 - options["beta2"]) * np.sign(variance - square)
        after[f"{name}/m"], after[f"{name}/v"] = mean, variance
        number = steps.get(f"{name}/m", 0) + 1
        corrected = options.get("bias_correction", False)
        first = 1 - beta1**number if corrected else 1.0
        second = 1 - options["beta2"] ** number if corrected else 1.0
        return np.asarray(mean / first * rate / (np.sqrt(variance / second) + tau))
