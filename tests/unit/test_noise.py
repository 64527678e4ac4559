"""The noise of differential privacy: its distribution, its grid, its independence, and that of trees."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fedround_server.engine import noise
from fedround_server.engine.noise import CHUNK, MARGIN, FreshNoise, TreeNoise, ended_nodes, lowest_bit, new_key, noisy

COUNT = 1 << 18
# Each test of a distribution fails once in 10^9 runs.
DEVIATIONS = 6.1


def fresh(std: float = 1.0, count: int = COUNT) -> np.ndarray:
    return FreshNoise(std).add(torch.zeros(count, dtype=torch.float64), 0).numpy()


def test_the_noise_has_the_moments_of_a_gaussian() -> None:
    found = fresh(0.25) / (0.25 * MARGIN)
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10170)}.items():
        assert abs((found**power).mean() - mean) < DEVIATIONS * math.sqrt(variance / COUNT), power


def test_the_noise_has_the_distribution_of_a_gaussian() -> None:
    found = np.sort(fresh() / MARGIN)
    cumulative = np.array([(1 + math.erf(one / math.sqrt(2))) / 2 for one in found.tolist()])
    steps = np.arange(COUNT + 1) / COUNT
    distance = max(np.abs(cumulative - steps[1:]).max(), np.abs(cumulative - steps[:-1]).max())
    # Kolmogorov and Smirnov: larger with a probability of at most 2 exp(-2 n d^2) (Massart, 1990).
    assert distance < math.sqrt(math.log(2e9) / (2 * COUNT))


def test_numbers_are_independent_of_each_other() -> None:
    found, other = fresh(), fresh()
    for first, second in ((found[1:], found[:-1]), (found[CHUNK:], found[:-CHUNK]), (found, other)):
        assert abs((first * second).mean()) < DEVIATIONS * MARGIN**2 / math.sqrt(len(first))
        assert abs((first**2 * second**2).mean() - 1) < DEVIATIONS * 4 / math.sqrt(len(first))
    # The halves of the Box-Muller transform.
    pairs = found.reshape(-1, 2, CHUNK // 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < DEVIATIONS * MARGIN**2 / math.sqrt(COUNT / 2)


def test_threads_draw_noise_of_their_own() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fresh(count=CHUNK), range(16)))
    assert len({one.tobytes() for one in found}) == 16
    means = np.corrcoef(np.stack(found)) - np.eye(16)
    assert np.abs(means).max() < DEVIATIONS / math.sqrt(CHUNK)


@pytest.mark.parametrize("std", [1e-20, 0.1, 3.0, 1e12])
def test_sums_and_noise_are_on_a_grid(std: float) -> None:
    grid = 2.0 ** math.floor(math.log2(std * MARGIN * noise.FINENESS))
    total = torch.linspace(-1, 1, 10001, dtype=torch.float64).mul_(7 * std)
    found = FreshNoise(std).add(total.clone(), 0) / grid
    assert torch.equal(found, found.round())
    assert not torch.equal(found, (total / grid).round())
    assert grid < std * 1e-10


@pytest.mark.parametrize("std", [1e-29, 0.6, 1e30])
def test_a_single_number_and_its_noise_are_on_a_grid(std: float) -> None:
    grid = 2.0 ** math.floor(math.log2(std * MARGIN * noise.FINENESS))
    found = [noisy(2.5 * std, std) / grid for _ in range(200)]
    assert len(set(found)) == 200
    assert all(one == round(one) for one in found)
    assert noisy(2.5, 0.0) == 2.5
    assert noisy(2.5, 5e-324) == 2.5


def test_the_inputs_of_the_transform_reach_far_into_the_tails() -> None:
    radius = math.sqrt(-2 * math.log(0.5 * 2.0**-63))
    assert 9.4 < radius < 9.43


@pytest.mark.parametrize("step", range(1, 70))
def test_the_noise_of_steps_adds_up_to_that_of_the_nodes(step: int) -> None:
    nodes: set[int] = set()
    for number in range(1, step + 1):
        ended = set(ended_nodes(number))
        assert ended <= nodes
        nodes = nodes - ended | {number}
    # The binary representation of the last step.
    assert len(nodes) == step.bit_count()
    assert sum(lowest_bit(node) for node in nodes) == step


def test_a_tree_takes_noise_away_again() -> None:
    key, total = new_key(), torch.zeros(3 * CHUNK, dtype=torch.float64)
    sizes = []
    for step in range(1, 33):
        TreeNoise(1.0, step, key).add(total, 0)
        sizes.append(float(total.std()))
    expected = [math.sqrt(step.bit_count()) for step in range(1, 33)]
    assert np.allclose(sizes, expected, rtol=0.05)
    again = torch.zeros(3 * CHUNK, dtype=torch.float64)
    TreeNoise(1.0, 32, key).add(again.zero_(), 0)
    one = torch.zeros_like(again)
    for node in ended_nodes(32):
        noise._add(one, 1.0, [(1, TreeNoise(1.0, 1, key)._key(node))], 0)
    # What was left after 32 steps is the noise of the last node alone.
    assert torch.equal(total, again + one)


def test_the_noise_of_trees_does_not_depend_on_how_elements_are_divided() -> None:
    key, count = new_key(), 3 * CHUNK + 17
    whole = TreeNoise(2.0, 6, key).add(torch.zeros(count, dtype=torch.float64), 0)
    borders = [0, 5, CHUNK - 1, CHUNK + 1, 2 * CHUNK, count]
    parts = [
        TreeNoise(2.0, 6, key).add(torch.zeros(end - start, dtype=torch.float64), start)
        for start, end in itertools.pairwise(borders)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(TreeNoise(2.0, 6, new_key()).add(torch.zeros(count, dtype=torch.float64), 0), whole)


def test_a_secret_is_not_shown() -> None:
    key = new_key()
    assert key.hex() not in repr(TreeNoise(1.0, 1, key))
    assert repr(key) not in repr(TreeNoise(1.0, 1, key))
