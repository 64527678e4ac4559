"""Who takes part in a round: how many participants are asked, and which; pure functions."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Cohort:
    """Which of the registered participants take part in each round.

    Attributes:
        fraction: The part of those with the labels that a round needs, 0 < fraction <= 1; None for no fraction.
        size: How many a round needs; None for no size. Without fraction and size, it needs everybody.
        min_available: A round opens once so many registered participants are connected.
        over_selection: How many times more are asked than the round needs, at least 1.
        labels: The labels that the user of a participant must have.
        available_only: Whether only participants are asked that are connected when the round opens.
        seed: The seed of the draws, 0 to 2^64 - 1.
    """

    fraction: float | None = None
    size: int | None = None
    min_available: int = 0
    over_selection: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)
    available_only: bool = False
    seed: int = 0

    @property
    def is_drawn(self) -> bool:
        """Whether a round needs only some of those that can be asked."""
        return self.fraction is not None or self.size is not None

    @property
    def waits(self) -> bool:
        """Whether a round may have to wait for connections before it opens."""
        return self.min_available > 0 or self.available_only

    def needed(self, registered: int) -> int:
        """Returns how many updates a round needs, if so many participants with the labels are registered."""
        if self.size is not None:
            return self.size
        return registered if self.fraction is None else _ceil(self.fraction, registered)

    def expected(self, registered: int) -> float:
        """Returns how many participants a round asks on average, if so many with the labels are registered."""
        if self.size is not None:
            return min(self.size, registered)
        return registered if self.fraction is None else self.fraction * registered

    def asked(self, needed: int) -> int:
        """Returns how many participants are asked for so many updates."""
        return _ceil(self.over_selection, needed)


def _ceil(factor: float, count: int) -> int:
    # The decimal number that a person wrote: 0.07 * 100 is 7.000000000000001 in binary, and would be rounded up to 8.
    return math.ceil(Fraction(repr(factor)) * count)


def draw_independently(
    seed: int, training_id: str, number: int, attempt: int, eligible: Collection[str], fraction: float
) -> list[str]:
    """Draws the members of a round's cohort, each independently of the others: Poisson sampling.

    A participant is chosen if the random number that `draw` gives it is less than 2^256 * fraction.

    Args:
        seed: The seed of the training's draws.
        training_id: The training.
        number: The round, from 0.
        attempt: The attempt at the round, from 1.
        eligible: The ids of those that can be chosen, without repetitions.
        fraction: The probability of each, 0 < fraction <= 1.

    Returns:
        The chosen ids in canonical order; there may be none.
    """
    rank, below = _ranks(seed, training_id, number, attempt), Fraction(fraction) * 2**256
    return sorted(user_id for user_id in eligible if int.from_bytes(rank(user_id), "big") < below)


def draw(seed: int, training_id: str, number: int, attempt: int, eligible: Collection[str], count: int) -> list[str]:
    """Draws the members of a round's cohort, uniformly without replacement.

    Each participant gets the random number SHA-256("SEED TRAINING_ID ROUND ATTEMPT USER_ID"), with decimal numbers and
    UUIDs in lower case, and those with the smallest numbers are chosen: simple random sampling by sorting random
    numbers (Sunter, List Sequential Sampling with Equal or Unequal Probabilities without Replacement, Applied
    Statistics 26, 1977). The draws of two rounds are independent, and so are those of two attempts at a round. Whoever
    knows the seed can repeat a draw in any language; whether a participant is chosen depends on the others only through
    their number and their random numbers, not on the order of the ids.

    Args:
        seed: The seed of the training's draws.
        training_id: The training.
        number: The round, from 0.
        attempt: The attempt at the round, from 1.
        eligible: The ids of those that can be chosen, without repetitions.
        count: How many are wanted.

    Returns:
        The chosen ids in canonical order; all if there are no more than count.
    """
    return sorted(sorted(eligible, key=_ranks(seed, training_id, number, attempt))[:count])


def _ranks(seed: int, training_id: str, number: int, attempt: int) -> Callable[[str], bytes]:
    """Returns a function that returns the random number of a participant."""
    prefix = sha256(f"{seed} {training_id} {number} {attempt} ".encode())

    def rank(user_id: str) -> bytes:
        digest = prefix.copy()
        digest.update(user_id.encode())
        return digest.digest()

    return rank
