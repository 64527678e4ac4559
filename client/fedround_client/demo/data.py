"""Handwritten digits, split unevenly among the clients: four fifths for training, one fifth for evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

NUM_LABELS = 10
MIN_IMAGES = 16  # of each client: one batch


@dataclass(frozen=True)
class Digits:
    """Labelled images.

    Attributes:
        images: float32 of shape (n, 1, 8, 8), from 0 (white) to 1 (black).
        labels: int64 of shape (n,), the digit on each image.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def select(self, indices: npt.NDArray[np.int64]) -> "Digits":
        """Returns the images at some positions."""
        return Digits(self.images[indices], self.labels[indices])

    def label_counts(self) -> list[int]:
        """Returns the number of images of each digit."""
        return [int(count) for count in np.bincount(self.labels, minlength=NUM_LABELS)]

    def save(self, path: Path) -> None:
        """Writes the images to an npz file."""
        np.savez(path, images=self.images, labels=self.labels)

    @classmethod
    def read(cls, path: Path) -> "Digits":
        """Reads a file written by `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["images"], arrays["labels"])


def pooled(parts: Sequence[Digits]) -> Digits:
    """Returns all images of several clients."""
    return Digits(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


@dataclass(frozen=True)
class Split:
    """The images of each client.

    Attributes:
        clients: The training images of each client.
        shares: The held-out images of each client, for evaluation only.
    """

    clients: list[Digits]
    shares: list[Digits]

    @property
    def held_out(self) -> Digits:
        """All held-out images. The accuracy on them is the mean of the clients' accuracies, weighted by images."""
        return pooled(self.shares)


def load() -> Digits:
    """Loads the 1,797 images that come with scikit-learn."""
    # Takes a second to import, and participants do not need it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Digits((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64))


def split(digits: Digits, num_clients: int, alpha: float, seed: int) -> Split:
    """Splits the images of every label among the clients: one fifth for evaluation, the rest for training.

    The shares of each label are drawn from a Dirichlet distribution (Hsu et al., 2019, arXiv:1909.06335).

    Args:
        digits: All images.
        num_clients: Number of clients.
        alpha: Concentration of the distribution: the smaller, the less similar are the clients.
        seed: Seed of the split.

    Returns:
        The split. Every client has at least MIN_IMAGES images for training, and one for evaluation.

    Raises:
        ValueError: There are too few images for so many clients.
    """
    random = np.random.default_rng(seed)
    held_out: list[list[int]] = [[] for _ in range(num_clients)]
    training: list[list[int]] = [[] for _ in range(num_clients)]
    for label in range(NUM_LABELS):
        indices = random.permutation(np.flatnonzero(digits.labels == label))
        fifth = round(len(indices) / 5)
        shares = np.cumsum(random.dirichlet([alpha] * num_clients))[:-1]
        for part, clients in ((indices[:fifth], held_out), (indices[fifth:], training)):
            pieces = np.split(part, np.round(shares * len(part)).astype(int))
            for client, piece in zip(clients, pieces, strict=True):
                client.extend(int(index) for index in piece)
    _rebalance(held_out, 1)
    _rebalance(training, MIN_IMAGES)
    images = [digits.select(random.permutation(np.array(client, dtype=np.int64))) for client in training]
    return Split(images, [digits.select(np.array(share, dtype=np.int64)) for share in held_out])


def _rebalance(clients: list[list[int]], minimum: int) -> None:
    """Moves images from the client with the most to the client with the fewest until each has the minimum."""
    if sum(map(len, clients)) < minimum * len(clients):
        raise ValueError(f"there are too few images to give {len(clients)} clients {minimum} each")
    while len(smallest := min(clients, key=len)) < minimum:
        smallest.append(max(clients, key=len).pop())
