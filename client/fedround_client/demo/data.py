"""Handwritten digits, dealt unevenly to the clients: four fifths to learn from, a fifth to evaluate with."""

from collections.abc import Sequence
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


def pooled(parts: Sequence[Digits]) -> Digits:
    """The images of several in one place."""
    return Digits(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


@dataclass(frozen=True)
class Split:
    """Who has which images.

    Attributes:
        clients: What each client learns from.
        shares: What each evaluates with; nobody learns from these.
    """

    clients: list[Digits]
    shares: list[Digits]

    @property
    def held_out(self) -> Digits:
        """The images that nobody learns from: the mean of the clients' accuracies, by images, is that on these."""
        return pooled(self.shares)


def load() -> Digits:
    """Loads the 1,797 images that come with scikit-learn."""
    # Participants use this module too, and they can do without the second that this import takes.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Digits((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64))


def split(digits: Digits, num_clients: int, alpha: float, seed: int) -> Split:
    """Deals every label to the clients, a fifth of it to evaluate with and the rest to learn from.

    Each label is dealt in shares drawn from a Dirichlet distribution (Hsu et al., 2019, arXiv:1909.06335).

    Args:
        digits: All images.
        num_clients: How many clients there are.
        alpha: Concentration of the distribution: the smaller, the less the clients have in common.
        seed: Makes the split repeatable.

    Returns:
        The split, in which every client has at least MIN_IMAGES images to learn from, and one to evaluate with.
    """
    random = np.random.default_rng(seed)
    held_out: list[list[int]] = [[] for _ in range(num_clients)]
    hands: list[list[int]] = [[] for _ in range(num_clients)]
    for label in range(NUM_LABELS):
        indices = random.permutation(np.flatnonzero(digits.labels == label))
        fifth = round(len(indices) / 5)
        shares = np.cumsum(random.dirichlet([alpha] * num_clients))[:-1]
        for stock, receivers in ((indices[:fifth], held_out), (indices[fifth:], hands)):
            parts = np.split(stock, np.round(shares * len(stock)).astype(int))
            for receiver, part in zip(receivers, parts, strict=True):
                receiver.extend(int(index) for index in part)
    _feed_the_poorest(held_out, 1)
    _feed_the_poorest(hands, MIN_IMAGES)
    clients = [digits.take(random.permutation(np.array(hand, dtype=np.int64))) for hand in hands]
    return Split(clients, [digits.take(np.array(share, dtype=np.int64)) for share in held_out])


def _feed_the_poorest(hands: list[list[int]], least: int) -> None:
    """Moves images from the richest client to the poorest until everybody has enough."""
    if sum(map(len, hands)) < least * len(hands):
        raise ValueError(f"there are too few images to give {len(hands)} clients {least} each")
    while len(poorest := min(hands, key=len)) < least:
        poorest.append(max(hands, key=len).pop())
