"""What rounds cost of privacy: published values, the sensitivity of trees by brute force, and budgets."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from fedround_server.aggregators.differential_privacy import DifferentialPrivacy, count_noise, multiplier_of_updates
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.privacy import MAX_ROUNDS, Mechanism, mechanism_of
from fedround_server.engine.accountant import affordable_rounds, epsilon, tree_sensitivity
from fedround_server.engine.noise import ended_nodes


@pytest.mark.parametrize(
    ("sampling", "multiplier", "rounds", "delta", "expected"),
    [
        (1, 1, 1, 1e-5, 4.3772),
        (1, 5, 100, 1e-5, 9.9973),
        (0.1, 1, 100, 1e-5, 7.0466),
        (0.01, 1.1, 1000, 1e-5, 1.5154),
        (0.01, 0.8, 10000, 1e-6, 11.1832),
    ],
)
def test_epsilon_is_that_of_the_distribution_of_the_privacy_loss(
    sampling: float, multiplier: float, rounds: int, delta: float, expected: float
) -> None:
    assert round(epsilon(Mechanism(multiplier, delta, sampling), rounds), 4) == expected


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 7.0])
def test_epsilon_without_sampling_is_exact(multiplier: float) -> None:
    found = epsilon(Mechanism(multiplier, 1e-5), 1)

    def normal(value: float) -> float:
        return math.erfc(-value / math.sqrt(2)) / 2

    # Balle and Wang, 2018, theorem 5.
    half, shift = 1 / (2 * multiplier), found * multiplier
    assert normal(half - shift) - math.exp(found) * normal(-half - shift) == pytest.approx(1e-5, rel=1e-6)


def test_no_rounds_cost_nothing_and_more_rounds_cost_more() -> None:
    for mechanism in (Mechanism(1, 1e-5), Mechanism(1, 1e-5, 0.2), Mechanism(1, 1e-5, tree=True)):
        costs = [epsilon(mechanism, rounds) for rounds in (0, 1, 2, 5)]
        assert costs == sorted(costs)
        assert costs[0] == 0


@pytest.mark.parametrize("rounds", range(1, 10))
def test_the_sensitivity_of_trees_is_that_of_the_worst_participation(rounds: int) -> None:
    nodes = np.zeros((rounds, rounds))
    for step in range(1, rounds + 1):
        nodes[step - 1, step - (step & -step) : step] = 1
    # A participant contributes a number in [-1, 1] to each round; a convex function is largest at a corner.
    worst = max(np.linalg.norm(nodes @ np.array(pattern)) for pattern in itertools.product((-1, 0, 1), repeat=rounds))
    assert tree_sensitivity(rounds) == pytest.approx(worst)
    # The noisy sums and the noisy nodes follow from each other: nothing but the nodes is revealed.
    revealed, sums = np.zeros((rounds, rounds)), np.zeros(rounds)
    for step in range(1, rounds + 1):
        sums[[node - 1 for node in ended_nodes(step)]] -= 1
        sums[step - 1] += 1
        revealed[step - 1] = sums
    assert np.allclose(revealed @ nodes, np.tri(rounds))
    assert np.linalg.matrix_rank(revealed) == rounds


@pytest.mark.parametrize("rounds", [1, 2, 3, 8, 100])
def test_a_tree_is_one_gaussian_mechanism(rounds: int) -> None:
    square = sum((step & -step) ** 2 for step in range(1, rounds + 1))
    assert tree_sensitivity(rounds) == pytest.approx(math.sqrt(square))
    assert epsilon(Mechanism(50, 1e-5, tree=True), rounds) == epsilon(Mechanism(50 / math.sqrt(square), 1e-5), 1)


@pytest.mark.parametrize("first", [1, 3, 8, 21])
def test_two_trees_cost_no_more_than_one_of_all_their_rounds(first: int) -> None:
    for second in range(1, 40):
        both = tree_sensitivity(first) ** 2 + tree_sensitivity(second) ** 2
        assert both <= tree_sensitivity(first + second) ** 2 + 1e-6


@pytest.mark.parametrize(
    ("mechanism", "budget"),
    [
        (Mechanism(1, 1e-5), 8),
        (Mechanism(5, 1e-5), 9.99),
        (Mechanism(1, 1e-5, 0.1), 3),
        (Mechanism(50, 1e-5, tree=True), 2),
        (Mechanism(1, 1e-5), 4),
    ],
)
def test_a_budget_allows_as_many_rounds_as_it_pays(mechanism: Mechanism, budget: float) -> None:
    rounds = affordable_rounds(mechanism, budget)
    assert epsilon(mechanism, rounds) <= budget < epsilon(mechanism, rounds + 1)


def test_a_budget_that_allows_very_many_rounds_is_no_limit() -> None:
    assert affordable_rounds(Mechanism(1e6, 1e-5), 1) == MAX_ROUNDS


@pytest.mark.parametrize("mechanism", [Mechanism(1, 1e-5), Mechanism(1e-3, 1e-5)], ids=str)
def test_a_budget_may_be_huge(mechanism: Mechanism) -> None:
    assert affordable_rounds(mechanism, 1e300) in (16, MAX_ROUNDS)


def test_very_many_rounds_take_little_memory() -> None:
    tracemalloc.start()
    try:
        found = epsilon(Mechanism(1, 1e-5, 0.5), 10_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # With intervals of 1e-4 it is 1637.5334.
    assert 1637.5334 <= found < 1637.55
    assert peak < 500 << 20


def test_a_tiny_probability_costs_next_to_nothing() -> None:
    assert epsilon(Mechanism(1, 1e-5, 5e-324), 1) == 0


def test_sampling_counts_only_where_it_is_independent() -> None:
    private, tree = DifferentialPrivacy(1.0), DifferentialPrivacy(1.0, tree=True)
    assert mechanism_of(private, Cohort(fraction=0.25)) == Mechanism(1.0, 1e-5, 0.25)
    assert mechanism_of(private, None) == mechanism_of(private, Cohort(labels={"a": "b"})) == Mechanism(1.0, 1e-5)
    assert mechanism_of(tree, Cohort(fraction=0.25)) == Mechanism(1.0, 1e-5, tree=True)


def test_the_noise_of_the_number_within_the_norm_costs_what_the_updates_have_less() -> None:
    for std in (0.6, 1.0, 20.0):
        updates = multiplier_of_updates(1.0, std)
        # Two Gaussian mechanisms together: the squares of 1 / multiplier add up; the number changes by 1/2.
        assert updates**-2 + (0.5 / std) ** 2 == pytest.approx(1)
    assert multiplier_of_updates(1.0, 0.5) == math.inf
    assert count_noise(1.0, None, 100) == 5
    assert count_noise(1.0, None, 4) == 1
    assert count_noise(1.0, 3.0, 100) == 3
