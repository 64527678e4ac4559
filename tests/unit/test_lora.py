"""Rules for adapters, compared with dense matrices in NumPy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.lora import FreezeA, LoraStack, LoraSvd, Product, decompose, mean_product
from fedround_server.domain.aggregation import Aggregation, Rule
from fedround_server.domain.tensor_selection import TensorSelection
from fedround_server.domain.transport import Transport, UpdatePrecision
from fedround_server.engine.jobs import AggregationFailed
from unit.aggregating import Rounds, Sent, bits, stage

OUT, IN, RANK = 9, 7, 4
A, B, W = "layer.lora_A.weight", "layer.lora_B.weight", "layer.weight"
ADAPTERS = TensorSelection(("*lora_*", "head"))
TOLERANCE = 1e-13
"""Relative to the largest number, in float64."""


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def model(rank: int = RANK, dtype: torch.dtype = torch.float64, b: float = 0.0) -> dict[str, Tensor]:
    return {
        W: draw(OUT, IN, seed=1, dtype=dtype),
        A: draw(rank, IN, seed=2, dtype=dtype),
        B: draw(OUT, rank, seed=3, dtype=dtype) * b,
        "head": draw(5, seed=4, dtype=dtype),
    }


def update(seed: int, rank: int = RANK, weight: int = 1, dtype: torch.dtype = torch.float64) -> Sent:
    tensors = {
        A: draw(rank, IN, seed=10 * seed + 1, dtype=dtype),
        B: draw(OUT, rank, seed=10 * seed + 2, dtype=dtype),
        "head": draw(5, seed=10 * seed + 3, dtype=dtype),
    }
    return Sent(tensors, weight, user_id=f"site {seed}")


def mean(updates: Sequence[Sent]) -> np.ndarray:
    """The weighted mean of the products, as dense matrices."""
    total = sum(one.weight for one in updates)
    dense = [one.tensors[B].double().numpy() @ one.tensors[A].double().numpy() for one in updates]
    return sum(one.weight / total * product for one, product in zip(updates, dense, strict=True))


def product_of(tensors: Mapping[str, Tensor]) -> np.ndarray:
    return tensors[B].double().numpy() @ tensors[A].double().numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300))


@pytest.fixture
def rounds(tmp_path: Path) -> Any:
    def make(rule: Rule, **more: Any) -> Rounds:
        return Rounds(tmp_path, Aggregation(rule), tensors=ADAPTERS, **more)

    return make


MIXED = [update(1, 2, 3), update(2, 4, 10), update(3, 1, 1), update(4, 3, 7)]


def test_the_product_of_means_is_another_one(rounds: Any) -> None:
    same = [update(seed, RANK, seed) for seed in (1, 2, 3)]
    assert distance(product_of(rounds(FedAvg()).aggregate(model(), same)), mean(same)) > 0.1


def test_stack_adds_the_mean_of_the_products_to_the_weights(rounds: Any) -> None:
    before = model(b=1.0)
    made = rounds(LoraStack(scaling=0.5)).aggregate(before, MIXED)
    assert distance(made[W].numpy(), before[W].numpy() + 0.5 * mean(MIXED)) < TOLERANCE
    # The adapters begin anew.
    assert torch.equal(made[A], before[A])
    assert not made[B].any()
    assert torch.equal(
        made["head"],
        rounds(FedAvg()).aggregate(
            {"head": before["head"]}, [replace(one, tensors={"head": one.tensors["head"]}) for one in MIXED]
        )["head"],
    )


def test_svd_makes_the_nearest_adapter(rounds: Any) -> None:
    before = model()
    found = rounds(LoraSvd()).aggregate(before, MIXED)
    u, s, vt = np.linalg.svd(mean(MIXED))
    assert s[RANK] > 0.1, "the adapter cannot be exact"
    assert distance(product_of(found), (u[:, :RANK] * s[:RANK]) @ vt[:RANK]) < TOLERANCE
    assert W not in found or torch.equal(found[W], before[W])
    # In the order of the singular values, which are in B.
    assert torch.allclose(found[A] @ found[A].T, torch.eye(RANK, dtype=torch.float64))
    assert torch.allclose(found[B].norm(dim=0), torch.from_numpy(s[:RANK]))
    assert bool((found[A].gather(1, found[A].abs().argmax(1, keepdim=True)) > 0).all())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_svd_of_a_lower_rank_leaves_zeros(rounds: Any, rank: int) -> None:
    found = rounds(LoraSvd(rank)).aggregate(model(), MIXED)
    u, s, vt = np.linalg.svd(mean(MIXED))
    assert distance(product_of(found), (u[:, :rank] * s[:rank]) @ vt[:rank]) < TOLERANCE
    assert not found[A][rank:].any()
    assert not found[B][:, rank:].any()


def test_directions_that_no_update_has_stay_trainable(rounds: Any) -> None:
    before = model()
    few = [update(1, 1, 2), update(2, 1, 3)]
    found = rounds(LoraSvd()).aggregate(before, few)
    assert distance(product_of(found), mean(few)) < TOLERANCE
    assert not found[B][:, 2:].any()
    assert torch.equal(found[A][2:], before[A][2:])
    none = [replace(one, tensors={**one.tensors, B: torch.zeros_like(one.tensors[B])}) for one in few]
    found = rounds(LoraSvd()).aggregate(before, none)
    assert not found[B].any()
    assert torch.equal(found[A], before[A])


@pytest.mark.parametrize("rule", [LoraStack(), LoraSvd()])
def test_one_participant_has_the_effect_of_its_own_model(rounds: Any, rule: Rule) -> None:
    before = model()
    made = rounds(rule).aggregate(before, [update(1, 3, 5)])
    effect = made[W].numpy() - before[W].numpy() + product_of(made) if W in made else product_of(made)
    assert distance(effect, mean([update(1, 3, 5)])) < TOLERANCE


@pytest.mark.parametrize("rule", [LoraStack(), LoraSvd(), LoraSvd(2), FreezeA()])
def test_neither_order_nor_threads_change_a_bit(rounds: Any, rule: Rule) -> None:
    sent = (
        [replace(one, tensors=update(seed).tensors) for seed, one in enumerate(MIXED)]
        if isinstance(rule, FreezeA)
        else MIXED
    )
    made = set()
    for threads in (1, 2, 3):
        for order in list(permutations(sent))[:: 5 * threads]:
            run = rounds(rule, threads=threads)
            made.add(tuple(sorted(bits(run.aggregate(model(), list(order))).items())))
    assert len(made) == 1


def test_many_blocks_of_a_weight_are_added_by_threads_in_order(rounds: Any) -> None:
    wide = 100_001
    before = {**model(), W: draw(OUT, wide, seed=1), A: draw(RANK, wide, seed=2)}
    sent = [replace(one, tensors={**one.tensors, A: draw(len(one.tensors[A]), wide, seed=one.weight)}) for one in MIXED]
    made = [rounds(LoraStack(), threads=threads).aggregate(before, sent) for threads in (1, 2)]
    assert bits(made[0]) == bits(made[1])
    assert distance(made[0][W].numpy(), before[W].numpy() + mean(sent)) < TOLERANCE


@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    weights=st.lists(st.integers(1, 1000), min_size=6, max_size=6),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
def test_products_are_those_of_dense_matrices(
    ranks: list[int], weights: list[int], sizes: tuple[int, int], seed: int
) -> None:
    outputs, inputs = sizes
    pairs = [
        (draw(rank, inputs, seed=seed + 2 * number), draw(outputs, rank, seed=seed + 2 * number + 1))
        for number, rank in enumerate(ranks)
    ]
    chosen = weights[: len(ranks)]
    expected = sum(weight * (b @ a) for weight, (a, b) in zip(chosen, pairs, strict=True)) / sum(chosen)
    found = mean_product(pairs, chosen, sum(ranks))
    assert distance(found.rows(0, outputs).numpy(), expected.numpy()) < TOLERANCE
    assert (found.right is None) == (sum(ranks) >= min(sizes)), "dense only where the factors would be larger"
    u, values, vt = decompose(found)
    assert distance(((u * values) @ vt).numpy(), expected.numpy()) < TOLERANCE
    dense = np.linalg.svd(expected.numpy(), compute_uv=False)
    assert distance(values.numpy(), dense[: len(values)]) < TOLERANCE


@given(ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_svd_is_exact_where_the_rank_suffices(ranks: list[int], seed: int) -> None:
    rank = sum(ranks)
    pairs = [
        (draw(one, 30, seed=seed + 2 * number), draw(40, one, seed=seed + 2 * number + 1))
        for number, one in enumerate(ranks)
    ]
    found = mean_product(pairs, [1] * len(ranks), rank)
    a, b = LoraSvd().renewed(draw(rank, 30, seed=1), draw(40, rank, seed=2), lambda: found)
    assert distance((b @ a).numpy(), found.rows(0, 40).numpy()) < TOLERANCE


def test_a_product_that_float64_does_not_hold(rounds: Any) -> None:
    huge = [replace(one, tensors={name: tensor * 1e200 for name, tensor in one.tensors.items()}) for one in MIXED]
    with pytest.raises(AggregationFailed, match=r"float64 cannot hold: those of 'layer\.lora_A\.weight'"):
        rounds(LoraSvd()).aggregate(model(), huge)
    with pytest.raises(AggregationFailed, match=r"tensor 'layer\.weight' has values that its dtype cannot hold"):
        rounds(LoraStack()).aggregate(model(), huge)


def test_a_decomposition_that_does_not_converge(rounds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError

    monkeypatch.setattr(torch.linalg, "svd", diverge)
    with pytest.raises(AggregationFailed, match=r"does not converge: those of 'layer\.lora_A\.weight'"):
        rounds(LoraSvd()).aggregate(model(), MIXED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", [LoraStack(), LoraSvd()])
def test_narrow_types_are_rounded_once(rounds: Any, rule: Rule, dtype: torch.dtype) -> None:
    before = model(dtype=dtype)
    sent = [update(seed, rank, seed, dtype) for seed, rank in ((1, 1), (2, 2), (3, 1))]
    made = rounds(rule).aggregate(before, sent)
    assert {one.dtype for one in made.values()} == {dtype}
    if isinstance(rule, LoraStack):
        expected = torch.from_numpy(before[W].double().numpy() + mean(sent))
        assert (made[W].double() - expected).abs().max() <= torch.finfo(dtype).eps / 2 * expected.abs().max()
    else:
        assert distance(product_of(made), mean(sent)) < 4 * torch.finfo(dtype).eps


def test_updates_without_examples_have_no_part(rounds: Any) -> None:
    idle = replace(update(9, 2), weight=0)
    for rule in (LoraStack(), LoraSvd()):
        assert bits(rounds(rule).aggregate(model(), [*MIXED, idle])) == bits(rounds(rule).aggregate(model(), MIXED))
        made = rounds(rule).aggregate(model(), [idle])
        assert all(torch.equal(made[name], model()[name]) for name in made)


def test_differences_of_full_rank_count_as_what_they_make_of_the_model(rounds: Any) -> None:
    before = model(dtype=torch.float32, b=1.0)
    halves = [
        Sent({name: (draw(*before[name].shape, seed=seed) / 8).half() for name in (A, B, "head")}, seed, f"site {seed}")
        for seed in (1, 2)
    ]
    whole = [
        replace(one, tensors={name: before[name].double() + tensor.double() for name, tensor in one.tensors.items()})
        for one in halves
    ]
    low = update(3, 2, 3, torch.float32)
    made = rounds(LoraStack(), transport=Transport(precision=UpdatePrecision.FLOAT16)).aggregate(before, [*halves, low])
    assert distance(made[W].numpy(), before[W].double().numpy() + mean([*whole, low])) < 1e-6


def test_masks_in_weights_stay(rounds: Any) -> None:
    before = model()
    before[W][0, 0], before[W][2, 3] = -torch.inf, torch.nan
    made = rounds(LoraStack(), keep_non_finite=True).aggregate(before, MIXED)
    kept = ~torch.isfinite(before[W])
    assert made[W][kept].view(torch.int64).tolist() == before[W][kept].view(torch.int64).tolist()
    assert torch.isfinite(made[W][~kept]).all()


@pytest.mark.parametrize("rule", [LoraStack(), LoraSvd()])
def test_convolutions(tmp_path: Path, rule: Rule) -> None:
    before = {W: draw(6, 3, 2, 5, seed=1), A: draw(3, 3, 2, 5, seed=2), B: draw(6, 3, 1, 1, seed=3)}
    sent = [
        Sent({A: draw(rank, 3, 2, 5, seed=5 + rank), B: draw(6, rank, 1, 1, seed=9 + rank)}, rank) for rank in (1, 2)
    ]
    made = Rounds(tmp_path, Aggregation(rule), tensors=ADAPTERS).aggregate(before, sent)

    def layer(tensors: Mapping[str, Tensor]) -> Tensor:
        # As PEFT computes it.
        return torch.nn.functional.conv2d(tensors[A].permute(1, 0, 2, 3), tensors[B]).permute(1, 0, 2, 3)

    expected = sum(one.weight / 3 * layer(one.tensors) for one in sent)
    effect = made[W] - before[W] if isinstance(rule, LoraStack) else layer(made)
    torch.testing.assert_close(effect, expected)


def test_frozen_matrices_keep_their_bits_and_their_partners_are_averaged(rounds: Any) -> None:
    before = model(dtype=torch.float32, b=1.0)
    sent = [update(seed, RANK, seed, torch.float32) for seed in (1, 2, 3)]
    made, plain = rounds(FreezeA()).aggregate(before, sent), rounds(FedAvg()).aggregate(before, sent)
    assert torch.equal(made[A], before[A])
    assert torch.equal(made[B], plain[B])
    assert torch.equal(made["head"], plain["head"])


def test_what_is_frozen_has_no_part_in_norms(tmp_path: Path) -> None:
    clipped = Aggregation(
        FreezeA(), clipping=stage("clipping", "fixed", norm=1.0), server_optimizer=stage("server_optimizer", "adam")
    )
    run = Rounds(tmp_path, clipped, tensors=ADAPTERS)
    before = model()
    run.aggregate(before, [update(1), update(2)])
    expected = np.sqrt(sum(float((update(1).tensors[name] - before[name]).square().sum()) for name in (B, "head")))
    assert run.facts[0].norm == pytest.approx(expected)
    assert sorted(run.slot("adam/m")) == sorted([B, "head"])


def test_the_report_has_the_shares(rounds: Any) -> None:
    run = rounds(LoraStack())
    run.aggregate(model(), MIXED)
    assert [one.share for one in run.facts] == [3 / 21, 10 / 21, 1 / 21, 7 / 21]


def test_memory_of_the_factors_only() -> None:
    outputs, inputs = 30_000, 20_000
    pairs = [(torch.ones(1, inputs, dtype=torch.float64), torch.ones(outputs, 1, dtype=torch.float64))] * 2
    found = mean_product(pairs, [1, 1], 2)
    assert found.right is not None
    # Dense, this would take 4.8 GB.
    u, values, vt = decompose(Product(found.left, found.right))
    assert values[0] == pytest.approx((outputs * inputs) ** 0.5)
    assert (len(u), vt.shape[1]) == (outputs, inputs)
