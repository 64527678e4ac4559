import numpy as np
import pytest
import torch

from fedround_client.demo import data, network


@pytest.fixture(scope="module")
def split() -> data.Split:
    return data.split(data.load(), 5, 0.3, seed=1)


def equal(one: network.State, other: network.State) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def average(states: list[network.State], weights: list[int]) -> network.State:
    return {
        name: np.average([state[name].astype(np.float64) for state in states], axis=0, weights=weights).astype(
            np.float32
        )
        for name in states[0]
    }


def test_a_seed_decides_the_start_and_leaves_torch_alone() -> None:
    before = torch.random.get_rng_state()
    assert equal(network.initial_state(1), network.initial_state(1))
    assert not equal(network.initial_state(1), network.initial_state(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_is_repeatable_and_leaves_its_input_alone(split: data.Split) -> None:
    start, images = network.initial_state(1), split.clients[0]
    first, second = (network.train(start, images, epochs=1, seed=7) for _ in range(2))
    assert equal(first, second)
    assert not equal(first, network.train(start, images, epochs=1, seed=8))
    assert equal(start, network.initial_state(1))


def test_the_mean_of_the_shares_is_the_accuracy_on_all_held_out_images(split: data.Split) -> None:
    state = network.train(network.initial_state(1), split.clients[0], epochs=1, seed=7)
    accuracies = [network.accuracy(state, share) for share in split.shares]
    mean = np.average(accuracies, weights=[len(share) for share in split.shares])
    assert mean == pytest.approx(network.accuracy(state, split.held_out))


def test_seeds_differ_by_purpose() -> None:
    paths = [(1,), (1, 0), (1, 1), (1, 1, 0), (1, 0, 1), (2, 1)]
    assert len({network.derive_seed(*path) for path in paths}) == len(paths)


def test_the_network_learns_all_digits_in_one_place(split: data.Split) -> None:
    start = network.initial_state(1)
    curve = list(network.learning_curve(start, data.pooled(split.clients), split.held_out, rounds=3, epochs=2, seed=1))
    assert len(curve) == 4
    assert curve[0] == network.accuracy(start, split.held_out) < 0.3
    assert curve[-1] >= 0.95


@pytest.mark.examples
def test_clients_together_do_well_and_alone_do_not(split: data.Split) -> None:
    rounds, epochs = 9, 3
    start = state = network.initial_state(1)
    for number in range(rounds):
        updates = [
            network.train(state, images, epochs, network.derive_seed(1, position, number))
            for position, images in enumerate(split.clients)
        ]
        state = average(updates, [len(images) for images in split.clients])
    together = network.accuracy(state, split.held_out)
    alone = [
        list(network.learning_curve(start, images, split.held_out, 3, epochs, seed=1))[-1] for images in split.clients
    ]
    assert together >= 0.95
    assert max(alone) < 0.9
