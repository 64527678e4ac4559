"""Handwritten digits, a fifth held out and the rest dealt unevenly to the clients."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

NUM_LABELS = 10
MIN_IMAGES = 16  # what every client gets at least: a batch


@dataclass(frozen=True)
class Digits:
    """Labelled images.

    Attributes:
        images: float32 of shape (n, 1, 8, 8), ink from 0 to 1.
        labels: int64 of shape (n,), the digit that each image shows.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "Digits":
        """The images at some positions."""
        return Digits(self.images[indices], self.labels[indices])

    def label_counts(self) -> list[int]:
        """How many images there are of each digit."""
        return [int(count) for count in np.bincount(self.labels, minlength=NUM_LABELS)]

    def save(self, path: Path) -> None:
        """Writes the images to an npz file, for the process that works with them."""
        np.savez(path, images=self.images, labels=self.labels)

    @classmethod
    def read(cls, path: Path) -> "Digits":
        """Reads what save wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["images"], arrays["labels"])


@dataclass(frozen=True)
class Split:
    """Who has which images."""

    clients: list[Digits]
    held_out: Digits

    def pooled(self) -> Digits:
        """The images of all clients in one place."""
        return Digits(
            np.concatenate([client.images for client in self.clients]),
            np.concatenate([client.labels for client in self.clients]),
        )


def load() -> Digits:
    """Loads the 1,797 images that come with scikit-learn."""
    # Participants use this module too, and they can do without the second that this import takes.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Digits((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64))


def split(digits: Digits, num_clients: int, alpha: float, seed: int) -> Split:
    """Holds out a fifth of every label and deals the rest to the clients.

    Each label is dealt in shares drawn from a Dirichlet distribution (Hsu et al., 2019, arXiv:1909.06335).

    Args:
        digits: All images.
        num_clients: How many clients there are.
        alpha: Concentration of the distribution: the smaller, the less the clients have in common.
        seed: Makes the split repeatable.

    Returns:
        The split, in which every client has at least MIN_IMAGES images.
    """
    random = np.random.default_rng(seed)
    held_out: list[npt.NDArray[np.int64]] = []
    hands: list[list[int]] = [[] for _ in range(num_clients)]
    for label in range(NUM_LABELS):
        indices = random.permutation(np.flatnonzero(digits.labels == label))
        fifth = round(len(indices) / 5)
        held_out.append(indices[:fifth])
        rest = indices[fifth:]
        shares = random.dirichlet([alpha] * num_clients)
        cuts = np.round(np.cumsum(shares)[:-1] * len(rest)).astype(int)
        for hand, part in zip(hands, np.split(rest, cuts), strict=True):
            hand.extend(int(index) for index in part)
    _feed_the_poorest(hands)
    clients = [digits.take(random.permutation(np.array(hand, dtype=np.int64))) for hand in hands]
    return Split(clients, digits.take(np.concatenate(held_out)))


def _feed_the_poorest(hands: list[list[int]]) -> None:
    """Moves images from the richest client to the poorest until everybody has enough to train on."""
    if sum(map(len, hands)) < MIN_IMAGES * len(hands):
        raise ValueError(f"there are too few images to give {len(hands)} clients {MIN_IMAGES} each")
    while len(poorest := min(hands, key=len)) < MIN_IMAGES:
        poorest.append(max(hands, key=len).pop())
