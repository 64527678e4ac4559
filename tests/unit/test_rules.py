"""The contract of the stages of aggregation: each entry of the registry, alone and with the others."""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedround_server.aggregators import STAGES, from_aggregation, to_aggregation
from fedround_server.aggregators.clipping import FixedClipping
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.krum import Krum
from fedround_server.aggregators.mixing import Bucketing, NearestNeighbor
from fedround_server.aggregators.server_optimizer import Adam, Sgd
from fedround_server.domain.aggregation import Aggregation, OptionInvalid
from fedround_server.domain.transport import Transport, UpdatePrecision
from fedround_server.engine.jobs import AggregationFailed
from unit.aggregating import Rounds, Sent, Tensors, bits, is_compatible, stage

COUNT = 7
DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
)
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping", "fl_trust")
NEED_SEVERAL = ("krum", "multi_krum", "bulyan", "fl_trust")
# What partial_sum makes is no model: test_partial_sums.py has its contract.
RULES = sorted({*STAGES["algorithm"]} - {"partial_sum"})
OPTIMIZERS = sorted(STAGES["server_optimizer"])
BUFFER = "norm.running_mean"


def rule(name: str) -> Any:
    """A rule that goes with the number of updates; of the trimmed mean, one that cuts something off."""
    return stage("algorithm", name, **({"beta": 0.2} if name == "trimmed_mean" else {}))


def combinations() -> Iterator[Aggregation]:
    """Each rule alone and with each other stage, and with all of them."""
    for name in RULES:
        alone = Aggregation(rule(name))
        without = Aggregation(replace(alone.rule, f=0) if hasattr(alone.rule, "f") else alone.rule)
        yield alone
        others = [
            replace(alone, clipping=FixedClipping(5.0)),
            replace(alone, mixing=NearestNeighbor(2)),
            replace(without, mixing=Bucketing(2, seed=4)),
            replace(without, clipping=FixedClipping(5.0), mixing=NearestNeighbor(2), server_optimizer=Adam(0.5)),
        ]
        if name in ("fed_avg", "median", "centered_clipping", "scaffold"):
            others += [replace(alone, server_optimizer=stage("server_optimizer", one)) for one in OPTIMIZERS]
        yield from filter(is_compatible, others)


def name_of(aggregation: Aggregation) -> str:
    return " ".join(one.name for one in aggregation.stages.values())


COMBINATIONS = list(combinations())


def draw(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """A model with every type, with scalars, without elements, with many small tensors, integers and buffers."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for dtype, shape in product(DTYPES, ((5, 3), (), (0, 3))):
        drawn = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
        tensors[f"{dtype} {shape}"] = (
            torch.complex(drawn.float(), -drawn.float()) if dtype.is_complex else drawn.to(dtype)
        )
    for number in range(20):
        tensors[f"small.{number}"] = torch.randn(number % 3 + 1, generator=generator) * scale
    tensors[BUFFER] = torch.randn(4, generator=generator)
    tensors["norm.num_batches_tracked"] = torch.tensor(seed)
    tensors["steps"] = torch.arange(3) + seed
    return tensors


def moved(model: Tensors, seed: int, scale: float = 0.3) -> dict[str, Tensor]:
    """A model that is a little different."""
    other = draw(seed, scale)
    return {
        name: other[name]
        if not (tensor.is_floating_point() or tensor.is_complex())
        else (
            tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
            + other[name].to(torch.complex64 if tensor.is_complex() else torch.float64)
        ).to(tensor.dtype)
        for name, tensor in model.items()
    }


MODEL = draw(1)
UPDATES = [
    Sent(moved(MODEL, 10 + one), weight=3 * one + 1, user_id=f"site {one}", steps=one % 3 + 1, loss=0.3 * one)
    for one in range(COUNT)
]


def is_all_finite(tensors: Tensors) -> bool:
    return all(bool(torch.isfinite(one.float() if one.dtype.itemsize == 1 else one).all()) for one in tensors.values())


@pytest.fixture
def rounds(tmp_path: Path) -> Any:
    return lambda aggregation, **more: Rounds(tmp_path, aggregation, **more)


@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
def test_the_order_of_updates_does_not_change_the_bits(rounds: Any, aggregation: Aggregation) -> None:
    # Two of the files are equal, and only what is sent along tells them apart.
    updates = [*UPDATES[:-1], replace(UPDATES[-1], tensors=UPDATES[-2].tensors)]
    made = set()
    for order in (updates, updates[2::-1] + updates[:2:-1]):
        training = rounds(aggregation)
        first = training.aggregate(MODEL, order)
        second = training.aggregate(first, order)
        slots = [Path(blob.sha256).read_bytes() for blob in training.state.slots.values()]
        made.add((*bits(second).items(), *slots))
        assert {name: (one.dtype, one.shape) for name, one in second.items()} == {
            name: (one.dtype, one.shape) for name, one in MODEL.items()
        }
        assert is_all_finite(second)
    assert len(made) == 1


def without_clipping(name: str) -> Any:
    """A rule without a bound that these updates reach."""
    return replace(rule(name), tau=1e6) if name == "centered_clipping" else rule(name)


@pytest.mark.parametrize("name", sorted({*RULES} - {"q_fed_avg", "fed_dyn"}))
def test_equal_updates_give_themselves(rounds: Any, name: str) -> None:
    updates = [replace(one, tensors=UPDATES[0].tensors, steps=2) for one in UPDATES]
    made = rounds(Aggregation(without_clipping(name))).aggregate(MODEL, updates)
    if name == "centered_clipping":  # Adds a difference to the model: F64 is rounded twice.
        made["torch.float64 (5, 3)"], made["torch.float64 ()"] = (
            updates[0].tensors[key] for key in ("torch.float64 (5, 3)", "torch.float64 ()")
        )
    assert bits(made) == bits(updates[0].tensors)


@pytest.mark.parametrize("mixing", [NearestNeighbor(2), Bucketing(3)], ids=lambda one: one.name)
def test_mixing_keeps_equal_updates(rounds: Any, mixing: Any) -> None:
    updates = [replace(one, tensors=UPDATES[0].tensors) for one in UPDATES]
    made = rounds(Aggregation(FedAvg(), mixing=mixing)).aggregate(MODEL, updates)
    assert bits(made) == bits(updates[0].tensors)


def test_q_fed_avg_without_q_keeps_equal_updates(rounds: Any) -> None:
    updates = [replace(one, tensors=UPDATES[0].tensors) for one in UPDATES]
    made = rounds(Aggregation(stage("algorithm", "q_fed_avg", q=0.0))).aggregate(MODEL, updates)
    assert bits(made) == bits(updates[0].tensors)


@pytest.mark.parametrize("name", sorted({*RULES} - {"q_fed_avg", "fed_dyn", *NEED_SEVERAL}))
def test_one_update_is_the_result(rounds: Any, name: str) -> None:
    aggregation = Aggregation(without_clipping(name))
    made = rounds(aggregation).aggregate(MODEL, UPDATES[4:5])
    exact = {key: one for key, one in made.items() if name != "centered_clipping" or one.dtype != torch.float64}
    assert bits(exact) == bits({key: UPDATES[4].tensors[key] for key in exact})


@pytest.mark.parametrize("name", NEED_SEVERAL)
def test_too_few_updates_are_no_round(rounds: Any, name: str) -> None:
    needed = rule(name).min_updates()
    with pytest.raises(AggregationFailed, match=f"needs {needed} updates, and there are {needed - 1}"):
        rounds(Aggregation(rule(name))).aggregate(MODEL, UPDATES[: needed - 1])
    assert rounds(Aggregation(rule(name))).aggregate(MODEL, UPDATES[:needed])


def test_too_few_updates_are_not_mixed(rounds: Any) -> None:
    mixed = rounds(Aggregation(FedAvg(), mixing=NearestNeighbor(2)))
    with pytest.raises(AggregationFailed, match=r"nearest_neighbor\(f=2\) needs 5 updates, and there are 4"):
        mixed.aggregate(MODEL, UPDATES[:4])
    assert mixed.aggregate(MODEL, UPDATES[:5])


@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
def test_without_examples_the_model_and_the_state_stay(rounds: Any, aggregation: Aggregation) -> None:
    training = rounds(aggregation)
    model = training.aggregate(MODEL, UPDATES)
    before = {slot: bits(training.slot(slot)) for slot in aggregation.slots}
    model["small.1"] = -torch.zeros(2)
    made = training.aggregate(model, [replace(one, weight=0) for one in UPDATES])
    assert bits(made) == bits(model)
    assert {slot: bits(training.slot(slot)) for slot in aggregation.slots} == before


@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_gets_into_no_model(rounds: Any, aggregation: Aggregation, bad: float) -> None:
    for name in (BUFFER, "torch.float16 (5, 3)"):
        tensors = {**UPDATES[2].tensors, name: UPDATES[2].tensors[name].clone()}
        tensors[name].view(-1)[0] = bad
        updates = [*UPDATES[:2], replace(UPDATES[2], tensors=tensors), *UPDATES[3:]]
        training = rounds(aggregation)
        if bad == torch.inf and name != BUFFER:
            # A robust rule may do without it.
            try:
                assert is_all_finite(training.aggregate(MODEL, updates))
            except AggregationFailed:
                continue
        else:
            with pytest.raises(AggregationFailed):
                training.aggregate(MODEL, updates)


@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
def test_extremes_have_an_aggregate(rounds: Any, aggregation: Aggregation) -> None:
    model = {"w": torch.tensor([0.5])}
    for values in ([0.5] * COUNT, [0.0] * COUNT, [-0.0] * COUNT, [1e-45] * COUNT, [0.1 * one for one in range(COUNT)]):
        training = rounds(aggregation)
        first = training.aggregate(
            model, [replace(one, tensors={"w": torch.tensor([v])}) for one, v in zip(UPDATES, values, strict=True)]
        )
        assert is_all_finite(first)
        assert -2 < first["w"].item() < 2


@pytest.mark.parametrize("giant", [1e38, -1e38, 1e200])
@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
def test_one_giant_fails_no_round_and_robust_rules_hold(rounds: Any, aggregation: Aggregation, giant: float) -> None:
    dtype = torch.float64 if abs(giant) > 1e39 else torch.float32
    values = [0.1 * one for one in range(COUNT)]
    updates = [
        replace(one, tensors={"w": torch.full((3,), value, dtype=dtype)})
        for one, value in zip(UPDATES, values, strict=True)
    ]
    updates[5] = replace(updates[5], tensors={"w": torch.tensor([giant, 0.5, -giant], dtype=dtype)})
    training = rounds(aggregation)
    made = training.aggregate({"w": torch.zeros(3, dtype=dtype)}, updates)["w"]
    assert torch.isfinite(made).all()
    assert all(is_all_finite(training.slot(slot)) for slot in aggregation.slots)
    if aggregation.rule.name in ROBUST and aggregation.mixing is None and aggregation.server_optimizer is None:
        assert made.abs().max() < 10


@pytest.mark.parametrize("name", ["krum", "geometric_median", "centered_clipping", "median"])
def test_threads_do_not_change_the_bits(rounds: Any, name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    model = {"w": torch.randn(40_000, dtype=torch.float64, generator=generator)}
    updates = [
        Sent({"w": model["w"] + torch.randn(40_000, dtype=torch.float64, generator=generator)}, one + 1)
        for one in range(33)
    ]
    before, made = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            made.add(bits(rounds(Aggregation(rule(name))).aggregate(model, updates))["w"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(made) == 1


SCALES = {"geometric_median": ("nu", 1), "centered_clipping": ("tau", 1), "q_fed_avg": ("lipschitz", -2)}


@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
def test_powers_of_two_scale_the_aggregate(rounds: Any, aggregation: Aggregation) -> None:
    factor = 2.0**5
    option, power = SCALES.get(aggregation.rule.name, ("", 0))
    changed = getattr(aggregation.rule, option) * factor**power if option else None
    scaled = replace(aggregation, rule=replace(aggregation.rule, **({option: changed} if option else {})))
    if isinstance(scaled.clipping, FixedClipping):
        scaled = replace(scaled, clipping=FixedClipping(scaled.clipping.norm * factor))
    if scaled.server_optimizer is not None and hasattr(scaled.server_optimizer, "tau"):
        optimizer: Any = scaled.server_optimizer
        # The root of v is divided by: steps have the size of the learning rate.
        scaled = replace(
            scaled,
            server_optimizer=replace(
                optimizer, tau=optimizer.tau * factor, learning_rate=optimizer.learning_rate * factor
            ),
        )
    key = "torch.float64 (5, 3)"
    updates = [replace(one, tensors={"w": one.tensors[key]}) for one in UPDATES]
    larger = [replace(one, tensors={"w": one.tensors["w"] * factor}) for one in updates]
    # Buckets are drawn by the digests of the files.
    if isinstance(aggregation.mixing, Bucketing):
        return
    made = rounds(aggregation).aggregate({"w": MODEL[key]}, updates)["w"]
    found = rounds(scaled).aggregate({"w": MODEL[key] * factor}, larger)["w"]
    assert torch.allclose(found, made * factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
def test_only_the_ratios_of_weights_matter(rounds: Any, aggregation: Aggregation) -> None:
    made = rounds(aggregation).aggregate(MODEL, UPDATES)
    more = rounds(aggregation).aggregate(MODEL, [replace(one, weight=one.weight * 4) for one in UPDATES])
    assert bits(more) == bits(made)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("precision", [UpdatePrecision.FLOAT16, UpdatePrecision.INT8], ids=lambda one: one.value)
def test_differences_are_aggregated_like_full_updates(rounds: Any, name: str, precision: UpdatePrecision) -> None:
    generator = torch.Generator().manual_seed(3)
    model = {"w": torch.randint(-9, 10, (70,), generator=generator).float(), "b": torch.ones(3)}
    full, narrow = [], []
    for one in UPDATES:
        steps = {key: torch.randint(-100, 101, value.shape, generator=generator) for key, value in model.items()}
        full.append(replace(one, tensors={key: model[key] + steps[key] / 64 for key in model}))
        if precision is UpdatePrecision.INT8:
            tensors = {key: value.to(torch.int8) for key, value in steps.items()}
            tensors |= {f"{key}.int8_scales": torch.tensor([1 / 64]) for key in steps}
        else:
            tensors = {key: (value / 64).half() for key, value in steps.items()}
        narrow.append(replace(one, tensors=tensors))
    expected = rounds(Aggregation(rule(name))).aggregate(model, full)
    found = rounds(Aggregation(rule(name)), transport=Transport(precision=precision)).aggregate(model, narrow)
    assert all(torch.allclose(found[key], expected[key], rtol=2e-7, atol=1e-7) for key in model)


@pytest.mark.parametrize("name", RULES)
def test_buffers_are_averaged_whatever_the_stages(rounds: Any, name: str) -> None:
    plain = rounds(Aggregation(FedAvg())).aggregate(MODEL, UPDATES)
    optimizer = stage("server_optimizer", "adam")
    for aggregation in (Aggregation(rule(name)), Aggregation(rule(name), server_optimizer=optimizer)):
        if is_compatible(aggregation):
            made = rounds(aggregation).aggregate(MODEL, UPDATES)
            kept = (BUFFER, "norm.num_batches_tracked", "steps")
            assert bits({key: made[key] for key in kept}) == bits({key: plain[key] for key in kept})


def test_globs_name_other_buffers(rounds: Any) -> None:
    model = {"a": torch.zeros(2), "b": torch.zeros(2), BUFFER: torch.zeros(2)}
    updates = [
        replace(one, tensors={key: torch.full((2,), float(index)) for key in model})
        for index, one in enumerate(UPDATES)
    ]
    weights = [one.weight for one in updates]
    mean = sum(weight * index for index, weight in enumerate(weights)) / sum(weights)
    training = rounds(Aggregation(stage("algorithm", "median"), server_optimizer=Sgd(0.5), buffers=("b",)))
    made = training.aggregate(model, updates)
    assert made["a"].tolist() == made[BUFFER].tolist() == [1.5, 1.5]
    assert made["b"].tolist() == [torch.tensor(mean).item()] * 2
    assert training.slot("sgd/v").keys() == {"a", BUFFER}


def test_what_is_a_buffer_has_no_part_in_a_choice(rounds: Any) -> None:
    # The update that is nearest to the others has the farthest buffer.
    updates = [
        replace(one, tensors={"w": torch.tensor([value]), BUFFER: torch.tensor([1e6 if value == 3 else 0.0])})
        for one, value in zip(UPDATES, (1.0, 2.0, 3.0, 4.0, 5.5, 9.0, 20.0), strict=True)
    ]
    made = rounds(Aggregation(Krum(2))).aggregate({"w": torch.zeros(1), BUFFER: torch.zeros(1)}, updates)
    assert made["w"].item() == 3


def test_stages_are_written_and_read() -> None:
    assert all(to_aggregation(from_aggregation(one)) == one for one in COMBINATIONS)


BEYOND = {
    "beta": (0.5, -0.1),
    "momentum": (1.0,),
    "beta1": (1.0,),
    "beta2": (1.0,),
    "iterations": (0, 1001),
    "size": (0,),
    "seed": (2**53 + 1,),
    "daisy_period": (0, 10_001),
    "aggregation_period": (10_001,),
    "trusted_client_id": ("",),
    **dict.fromkeys(("tau", "nu", "norm", "learning_rate", "lipschitz", "alpha"), (0.0, -0.0)),
    "quantile": (1.01,),
    "noise_multiplier": (0.0, 1e-4),
    "delta": (0.0, 1.0),
}
OPTIONS = [
    (field, name, option.name)
    for field, stages in STAGES.items()
    for name, kind in stages.items()
    for option in fields(kind)
    if option.type not in (bool, "bool")
]


@pytest.mark.parametrize(("field", "name", "option"), OPTIONS)
def test_options_out_of_range_are_named(field: str, name: str, option: str) -> None:
    good: Any = stage(field, name)
    good.check()
    numbers = () if option == "trusted_client_id" else (float("nan"), float("inf"), -float("inf"), -1)
    for value in (*numbers, *BEYOND.get(option, ())):
        with pytest.raises(OptionInvalid) as raised:
            replace(good, **{option: value}).check()
        assert raised.value.option == option
        assert raised.value.problem
