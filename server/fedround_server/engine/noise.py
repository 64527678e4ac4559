"""Gaussian noise of a cryptographic generator, on a grid.

Floating-point noise on floating-point sums reveals the sums by their last bits (Mironov, On Significance
of the Least Significant Bits for Differential Privacy, CCS 2012). Here, sums are first rounded to a grid, and so is the
noise: a rounded Gaussian. The sum of the two is what rounding makes of the Gaussian mechanism applied to the rounded
sums, as rounding after the noise was added would: post-processing, which reveals nothing more.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK = 4096
"""Numbers that are made at a time. The numbers of a tree depend on it."""
FINENESS = 2.0**-36
"""The grid, as a part of the standard deviation, at most."""
KEY_BYTES = 32
SMALLEST_STD = 1e-30
MARGIN = 1 + 2.0**-20
"""How much larger the standard deviation is than is asked for: norms have rounding errors."""


def new_key() -> bytes:
    """Returns a key from the system's generator."""
    return os.urandom(KEY_BYTES)


@dataclass(frozen=True, slots=True)
class FreshNoise:
    """Independent noise for each block. Nothing is left of it."""

    std: float

    def add(self, total: Tensor, first: int) -> Tensor:
        """Returns sums with noise.

        Args:
            total: The sums: shape (elements,), float64; overwritten.
            first: The place of the first element among all elements that have noise.
        """
        return _add(total, self.std, [(1, new_key())], 0)


@dataclass(frozen=True, slots=True)
class TreeNoise:
    """The noise of a step of tree aggregation (Kairouz et al., ICML 2021, arXiv 2103.00039, algorithm 1).

    The sum of the steps 1 to t has the noise of the nodes in the binary representation of t: those that end at t, at t
    without its lowest bit, and so on. So a step adds the noise of the node that ends at it, and takes that of the nodes
    away of which it is the last part. All of it follows from a secret key, and is computed again when it is needed.

    Attributes:
        std: Standard deviation of the noise of a node.
        step: The number of the step, >= 1.
        key: The secret of the tree.
    """

    std: float
    step: int
    key: bytes = field(repr=False)

    def add(self, total: Tensor, first: int) -> Tensor:
        """Returns sums with noise, like `FreshNoise.add`."""
        ended = [(-1, self._key(node)) for node in ended_nodes(self.step)]
        return _add(total, self.std, [(1, self._key(self.step)), *ended], first)

    def _key(self, node: int) -> bytes:
        return hashlib.sha256(b"fedround tree node " + self.key + node.to_bytes(8, "little")).digest()


Noise = FreshNoise | TreeNoise


def lowest_bit(step: int) -> int:
    """Returns how many steps the node of a tree covers that ends at a step."""
    return step & -step


def ended_nodes(step: int) -> Iterator[int]:
    """Yields the ends of the nodes whose noise the sum until a step has no longer, and the sum before still has."""
    end = step - 1
    while end > step - lowest_bit(step):
        yield end
        end -= lowest_bit(end)


def noisy(value: float, std: float) -> float:
    """Returns a number with Gaussian noise on a grid; without any if the standard deviation is less than 1e-30."""
    if std < SMALLEST_STD:
        return value
    return float(FreshNoise(std).add(torch.tensor([value], dtype=torch.float64), 0))


def _add(total: Tensor, std: float, terms: Sequence[tuple[int, bytes]], first: int) -> Tensor:
    """Rounds sums to the grid, and adds the noise of keys with their signs."""
    scaled = std * MARGIN
    grid = 2.0 ** math.floor(math.log2(scaled * FINENESS))
    for start, part in _chunks(total, first):
        place = first + start
        # Integers: sums of them are exact up to 2^53, and beyond that rounding comes after the noise.
        part.div_(grid).round_()
        for sign, key in terms:
            offset = place % CHUNK
            noise = _normals(key, place // CHUNK)[offset : offset + len(part)]
            part.add_(noise.mul_(scaled / grid).round_(), alpha=sign)
        part.mul_(grid)
    return total


def _chunks(total: Tensor, first: int) -> Iterator[tuple[int, Tensor]]:
    start = 0
    while start < len(total):
        end = min(len(total), start + CHUNK - (first + start) % CHUNK)
        yield start, total[start:end]
        start = end


def _normals(key: bytes, chunk: int) -> Tensor:
    """Returns CHUNK independent numbers with the standard normal distribution, by the Box-Muller transform.

    Its inputs are two words of 64 bits for two numbers, from SHAKE-128 with the key: no number is larger than 9.42.
    """
    stream = hashlib.shake_128(key + chunk.to_bytes(8, "little")).digest(8 * CHUNK)
    words = torch.frombuffer(bytearray(stream), dtype=torch.int64)
    uniform = words[: CHUNK // 2].bitwise_and_(2**63 - 1).double().add_(0.5).mul_(2.0**-63)
    radius = uniform.log_().mul_(-2).sqrt_()
    angle = words[CHUNK // 2 :].double().mul_(math.pi * 2.0**-63)
    return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])
