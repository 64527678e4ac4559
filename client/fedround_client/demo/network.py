"""A small convolutional network for 8 x 8 digits: initialisation, training and evaluation, deterministic by seed."""

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedround_client.demo.data import NUM_LABELS, Digits

State = dict[str, npt.NDArray[np.float32]]

SIDE = 8
BATCH_SIZE = 16
LEARNING_RATE = 0.03
MOMENTUM = 0.9


torch.set_num_threads(1)  # small tensors do not profit from threads, and several processes share the machine


class Network(nn.Sequential):
    """The network, with the input shape that the server needs for predictions."""

    input_shape = (1, SIDE, SIDE)


def build() -> Network:
    """Returns the network: two convolutions, each with pooling, then dropout and a linear layer."""
    # GroupNorm, since the running statistics of BatchNorm would differ from client to client.
    return Network(
        OrderedDict[str, nn.Module](
            edges=nn.Conv2d(1, 32, kernel_size=3, padding=1),
            edges_norm=nn.GroupNorm(4, 32),
            edges_relu=nn.ReLU(),
            edges_pool=nn.MaxPool2d(2),
            shapes=nn.Conv2d(32, 64, kernel_size=3, padding=1),
            shapes_norm=nn.GroupNorm(8, 64),
            shapes_relu=nn.ReLU(),
            shapes_pool=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            dropout=nn.Dropout(0.25),
            digit=nn.Linear(64 * 2 * 2, NUM_LABELS),
        )
    )


def derive_seed(seed: int, *purpose: int) -> int:
    """Returns an independent seed for a purpose, which is identified by numbers."""
    return int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1)[0])


def initial_state(seed: int) -> State:
    """Returns initial weights; does not change torch's global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _state(build())


def train(state: State, digits: Digits, epochs: int, seed: int) -> State:
    """Trains by stochastic gradient descent.

    Args:
        state: The weights to start from; not changed.
        digits: The training images.
        epochs: Number of epochs.
        seed: Determines the order of the images and the dropout.

    Returns:
        The trained weights.
    """
    network = _network(state).train()
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    # Dropout uses torch's global random state; fork_rng restores it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(digits)), BATCH_SIZE):
                optimizer.zero_grad()
                functional.cross_entropy(network(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return _state(network)


def learning_curve(
    state: State, digits: Digits, held_out: Digits, rounds: int, epochs: int, seed: int
) -> Iterator[float]:
    """Trains without a federation, for as many epochs as a participant does.

    Yields:
        The accuracy on the held-out images at the start and after each round's number of epochs.
    """
    yield accuracy(state, held_out)
    for number in range(rounds):
        state = train(state, digits, epochs, derive_seed(seed, number))
        yield accuracy(state, held_out)


def accuracy(state: State, digits: Digits) -> float:
    """Returns the fraction of images that the network classifies correctly."""
    with torch.inference_mode():
        scores = _network(state).eval()(torch.from_numpy(digits.images))
    return float((scores.argmax(dim=1).numpy() == digits.labels).mean())


def _network(state: State) -> nn.Module:
    network = build()
    network.load_state_dict({name: torch.tensor(values) for name, values in state.items()})
    return network


def _state(network: nn.Module) -> State:
    return {name: values.detach().numpy().copy() for name, values in network.state_dict().items()}
