"""Differential privacy and adaptive clipping as the engine computes them, beside numpy and the papers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fedround_server.aggregators.clipping import AdaptiveClipping, FixedClipping
from fedround_server.aggregators.differential_privacy import DifferentialPrivacy
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.server_optimizer import Adam, Sgd
from fedround_server.domain.aggregation import NO_STATE, Aggregation, AggregationState
from fedround_server.engine.aggregation import Aggregated, aggregate
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from unit.paths import Paths, at
from unit.safetensors_files import write

Tensors = dict[str, np.ndarray]
QUIET = 1e-3
"""A noise multiplier with which noise is much smaller than what is compared."""


class Rounds:
    """Aggregates one round after the other in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def file(self, tensors: Tensors) -> Path:
        self._count += 1
        path = self._folder / f"{self._count}.safetensors"
        path.write_bytes(write(tensors))
        return path

    def run(
        self,
        aggregation: Aggregation,
        model: Tensors,
        updates: list[Tensors],
        weights: list[int] | None = None,
        state: AggregationState = NO_STATE,
        **job: Any,
    ) -> tuple[Tensors, AggregationState, Aggregated]:
        self._count += 1
        target, files = self._folder / f"result {self._count}", [at(self.file(update)) for update in updates]
        targets = {slot: self._folder / f"{slot.replace('/', ' ')} {self._count}" for slot in aggregation.slots}
        job = {"population": len(updates), "expected": float(len(updates)), **job}
        made = aggregate(
            Paths(self._folder),
            AggregationJob(
                at(self.file(model)),
                tuple(files),
                tuple(weights or [1] * len(updates)),
                aggregation,
                state=state,
                **job,
            ),
            target,
            targets,
        )
        return (
            safetensors.numpy.load_file(target),
            AggregationState({slot: at(path) for slot, path in targets.items()}, made.steps),
            made,
        )


@pytest.fixture
def rounds(tmp_path: Path) -> Rounds:
    return Rounds(tmp_path)


def norm_of(state: AggregationState) -> float:
    return float(safetensors.numpy.load_file(state.slots["adaptive/norm"].sha256)["value"])


def private(multiplier: float, norm: float = 1.0, **options: Any) -> Aggregation:
    stages = {name: options.pop(name) for name in ("server_optimizer", "clipping") if name in options}
    stages = {"clipping": FixedClipping(norm), **stages}
    return Aggregation(FedAvg(), differential_privacy=DifferentialPrivacy(multiplier, **options), **stages)


def draw(count: int, size: int = 500, seed: int = 1) -> tuple[Tensors, list[Tensors]]:
    rng = np.random.default_rng(seed)
    model = {"a": rng.normal(size=size).astype(np.float32), "b": rng.normal(size=(3, 7))}
    scales = rng.lognormal(size=count) / 10
    return model, [
        {name: (one + rng.normal(size=one.shape) * scale).astype(one.dtype) for name, one in model.items()}
        for scale in scales
    ]


def clipped(model: Tensors, update: Tensors, norm: float) -> tuple[Tensors, bool]:
    difference = {name: update[name].astype(np.float64) - model[name].astype(np.float64) for name in model}
    length = math.sqrt(sum(float((one**2).sum()) for one in difference.values()))
    return {name: one * min(1, norm / length) for name, one in difference.items()}, length <= norm


@pytest.mark.parametrize("cap", [0, 40])
@pytest.mark.parametrize("expected", [8.0, 2.5])
def test_the_sum_of_clipped_updates_is_divided_by_what_a_round_expects(
    rounds: Rounds, cap: int, expected: float
) -> None:
    model, updates = draw(8)
    weights, norm = [1, 10, 20, 30, 40, 50, 60, 1000], 2.0
    aggregation = private(QUIET, norm, example_cap=cap)
    made, state, result = rounds.run(aggregation, model, updates, weights, expected=expected)
    assert state.slots == {}
    for name, base in model.items():
        total = sum(
            (min(weight, cap) / cap if cap else 1) * clipped(model, update, norm)[0][name]
            for update, weight in zip(updates, weights, strict=True)
        )
        left = made[name] - base - total / expected
        # The noise, and nothing more, is left.
        assert np.abs(left).max() < 7 * QUIET * norm / expected
        # Of 21 numbers, one deviation in a thousand would be farther away.
        if left.size >= 500:
            assert left.std() == pytest.approx(QUIET * norm / expected, rel=0.25)
    shares = [one.share for one in result.report]
    assert [one.scale for one in result.report] == pytest.approx(
        [min(1, norm / one.norm) for one in result.report if one.norm is not None]
    )
    assert all(share is not None and 0 < share <= 1 / expected for share in shares)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_noise_does_not_depend_on_who_answered(rounds: Rounds, count: int) -> None:
    model = {"w": np.zeros(200_000, np.float32)}
    made, *_ = rounds.run(private(2.0, 3.0), model, [model] * count, expected=10.0)
    assert made["w"].std() == pytest.approx(0.6, rel=0.02)
    assert made["w"].mean() == pytest.approx(0, abs=0.6 / math.sqrt(200_000) * 6.1)


def test_updates_without_examples_do_not_count_but_the_noise_is_there(rounds: Rounds) -> None:
    model = {"w": np.zeros(1000, np.float32)}
    made, _, result = rounds.run(private(1.0), model, [{"w": np.ones(1000, np.float32)}], [0], expected=1.0)
    assert made["w"].std() == pytest.approx(1, rel=0.2)
    assert result.report[0].share == 0


def test_each_run_has_noise_of_its_own(rounds: Rounds) -> None:
    model, updates = draw(3)
    found = [rounds.run(private(0.5), model, updates)[0]["b"].tobytes() for _ in range(3)]
    assert len(set(found)) == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_types_have_noise(rounds: Rounds, dtype: Any) -> None:
    model = {"w": np.zeros(4096 * 3 + 5, dtype)}
    made, *_ = rounds.run(private(1.0), model, [model], expected=2.0)
    assert made["w"].dtype == dtype
    assert np.float64(made["w"]).std() == pytest.approx(0.5, rel=0.1)


def test_buffers_and_integers_keep_the_values_of_the_model(rounds: Rounds) -> None:
    model = {
        "w": np.zeros(3, np.float32),
        "bn.running_mean": np.array([1.5], np.float32),
        "bn.num_batches_tracked": np.array(7),
        "ids": np.array([1, 2]),
    }
    update = {
        "w": np.ones(3, np.float32),
        "bn.running_mean": np.array([9.5], np.float32),
        "bn.num_batches_tracked": np.array(9),
        "ids": np.array([3, 4]),
    }
    made, *_ = rounds.run(private(QUIET), model, [update, update])
    assert made["bn.running_mean"] == 1.5
    assert made["bn.num_batches_tracked"] == 7
    assert made["ids"].tolist() == [1, 2]
    assert (made["w"] != 0).all()


def test_an_update_that_is_very_far_has_no_part(rounds: Rounds) -> None:
    model = {"w": np.zeros(3)}
    made, *_ = rounds.run(private(QUIET), model, [{"w": np.array([1e300, 0, 0])}, {"w": np.array([0, 0.5, 0])}])
    assert made["w"] == pytest.approx([0, 0.25, 0], abs=7 * QUIET)


def test_server_optimizers_come_after_the_noise(rounds: Rounds) -> None:
    model, updates = draw(4)
    optimizer = Adam(learning_rate=0.5, tau=1e-3)
    made, state, _ = rounds.run(private(0.7, server_optimizer=optimizer), model, updates)
    delta = {name: one / 0.1 for name, one in safetensors.numpy.load_file(state.slots["adam/m"].sha256).items()}
    assert delta["a"].std() > 0.7 / 4 * 0.9
    variance = safetensors.numpy.load_file(state.slots["adam/v"].sha256)["a"]
    assert made["a"] == pytest.approx(model["a"] + 0.5 * 0.1 * delta["a"] / (np.sqrt(variance) + 1e-3), abs=1e-6)


def test_a_tree_has_the_noise_of_few_nodes(rounds: Rounds) -> None:
    model, state = {"w": np.zeros(50_000)}, NO_STATE
    aggregation = private(1.0, tree=True, server_optimizer=Sgd(1.0))
    for step in range(1, 17):
        model, state, _ = rounds.run(aggregation, model, [model], state=state, expected=1.0)
        assert state.steps["tree/key"] == step
        assert model["w"].std() == pytest.approx(math.sqrt(step.bit_count()), rel=0.05)
    # Without its secret, a tree begins anew, and the noise is not taken away any more.
    without = AggregationState({}, {})
    model, state, _ = rounds.run(aggregation, model, [model], state=without, expected=1.0)
    assert model["w"].std() == pytest.approx(math.sqrt(2), rel=0.05)
    assert state.steps["tree/key"] == 1


@pytest.mark.parametrize("noise_std", [None, 0.0])
def test_an_adaptive_norm_follows_the_quantile(rounds: Rounds, noise_std: float | None) -> None:
    clipping, state, norm = AdaptiveClipping(0.8, 0.3, 0.5, noise_std), NO_STATE, 0.5
    model, updates = draw(10)
    for number in range(12):
        made, state, _ = rounds.run(Aggregation(FedAvg(), clipping=clipping), model, updates, state=state)
        results = [clipped(model, update, norm) for update in updates]
        expected = sum(one["a"] for one, _ in results) / 10
        assert made["a"] - model["a"] == pytest.approx(expected, abs=1e-6)
        within = sum(inside for _, inside in results) / 10
        norm *= math.exp(-0.3 * (within - 0.8))
        assert norm_of(state) == pytest.approx(norm, rel=1e-12)
        assert state.steps == {"adaptive/norm": number + 1}
    same, after, _ = rounds.run(Aggregation(FedAvg(), clipping=clipping), model, updates[:1], [0], state)
    assert (same["a"] == model["a"]).all()
    assert norm_of(after) == norm_of(state)


def test_a_noisy_adaptive_norm_is_drawn_once(rounds: Rounds) -> None:
    clipping = AdaptiveClipping(noise_std=2.0)
    model, updates = draw(5)
    norms = [norm_of(rounds.run(Aggregation(FedAvg(), clipping=clipping), model, updates)[1]) for _ in range(400)]
    exponents = np.log(np.array(norms) / 0.1) / -0.2
    assert np.std(exponents) == pytest.approx(2.0 / 5, rel=0.25)
    assert len(set(norms)) == 400


def test_an_adaptive_norm_with_privacy_has_noise_on_both(rounds: Rounds) -> None:
    model = {"w": np.zeros(20_000)}
    aggregation = private(
        1.0, clipping=AdaptiveClipping(quantile=0.5, learning_rate=1.0, initial_norm=2.0, noise_std=0.6)
    )
    made, state, _ = rounds.run(aggregation, model, [model] * 4, expected=4.0)
    multiplier = (1 - 1 / 1.44) ** -0.5
    assert made["w"].std() == pytest.approx(multiplier * 2 / 4, rel=0.05)
    norms = [
        norm_of(rounds.run(aggregation, {"w": np.zeros(1)}, [{"w": np.zeros(1)}] * 3, expected=4.0)[1])
        for _ in range(300)
    ]
    # All three are within: (3 - 3/2) / 4 + 1/2.
    parts = -np.log(np.array(norms) / 2) + 0.5
    assert parts.mean() == pytest.approx(0.875, abs=6.1 * 0.15 / math.sqrt(300))
    assert parts.std() == pytest.approx(0.6 / 4, rel=0.25)
    assert norm_of(state) > 0


def test_noise_of_the_norm_that_leaves_nothing_for_the_updates_fails(rounds: Rounds) -> None:
    model, updates = draw(2)
    aggregation = private(3.0, clipping=AdaptiveClipping(noise_std=1.0))
    with pytest.raises(AggregationFailed, match="noise of adaptive clipping"):
        rounds.run(aggregation, model, updates)


def test_a_norm_stays_in_its_range(rounds: Rounds) -> None:
    clipping = AdaptiveClipping(0.0, 1e6, 1e-29)
    model, updates = draw(2)
    zero = {name: one.copy() for name, one in model.items()}
    _, state, _ = rounds.run(Aggregation(FedAvg(), clipping=clipping), model, [zero, zero])
    assert norm_of(state) == 1e-30
    _, state, _ = rounds.run(Aggregation(FedAvg(), clipping=AdaptiveClipping(1.0, 1e6, 1e29)), model, updates)
    assert 0 < norm_of(state) <= 1e30
