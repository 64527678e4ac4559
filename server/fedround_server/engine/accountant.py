"""How much privacy rounds cost, by dp-accounting. It runs in a process of its own, which alone loads that package.

Rounds with Poisson sampling are accounted by the distribution of the privacy loss (Koskela et al., Computing Tight
Differential Privacy Guarantees Using FFT, AISTATS 2020), discretized so that epsilon is never too small. Otherwise
all rounds together are one Gaussian mechanism, whose epsilon is exact (Balle and Wang, Improving the Gaussian Mechanism
for Differential Privacy, ICML 2018). Neighboring data sets differ by one participant.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, expm1, floor, inf, log2, sqrt
from typing import TYPE_CHECKING

from fedround_server.domain.errors import AccountingMissing
from fedround_server.domain.privacy import MAX_ROUNDS, Mechanism

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

INTERVAL = 1e-4
"""Width of the intervals of the privacy loss, unless there would be too many."""
MAX_INTERVALS = 200_000
"""How many a round may have."""
MAX_COMPOSED = 1 << 21
"""How many all rounds together may have, about: each takes about 100 bytes for a while."""
SMALLEST_SAMPLING = 1e-12
"""Smaller probabilities cost as much as this one, and that is next to nothing."""
LARGEST_EPSILON = 1e7


def tree_sensitivity(rounds: int) -> float:
    """Returns by how much a participant can change all nodes of a tree together (L2), in clipping norms.

    The node that ends at round t covers as many rounds as the lowest bit of t says, and a participant that contributes
    to all of them, in the same direction, changes it by that number of norms: the square is the sum of the squares of
    these numbers.

    Args:
        rounds: How many rounds the tree has, in each of which each participant may contribute.
    """
    square, size = 0, 1
    while size <= rounds:
        square += (rounds // size - rounds // (2 * size)) * size * size
        size *= 2
    return sqrt(square)


def epsilon(mechanism: Mechanism, rounds: int) -> float:
    """Returns epsilon of a number of rounds, >= 0.

    Raises:
        AccountingMissing: dp-accounting is not installed.
    """
    if not rounds:
        _load()
        return 0.0
    z = mechanism.noise_multiplier
    if mechanism.tree:
        return _gaussian_epsilon(z / tree_sensitivity(rounds), mechanism.delta)
    if mechanism.sampling == 1:
        return _gaussian_epsilon(z / sqrt(rounds), mechanism.delta)
    sampling = max(mechanism.sampling, SMALLEST_SAMPLING)
    composed = _round(z, sampling, _interval(z, sampling, rounds)).self_compose(rounds)
    return max(0.0, float(composed.get_epsilon_for_delta(mechanism.delta)))


def affordable_rounds(mechanism: Mechanism, budget: float) -> int:
    """Returns how many rounds cost at most a budget, or MAX_ROUNDS if these cost no more.

    Raises:
        AccountingMissing: dp-accounting is not installed.
    """
    low, high = 0, 1
    cost_low, cost_high = 0.0, epsilon(mechanism, 1)
    while cost_high <= budget:
        if high == MAX_ROUNDS:
            return MAX_ROUNDS
        low, cost_low = high, cost_high
        # Costs grow at least like the square root, once there are some rounds: few steps are wasted.
        growth = min(16.0, budget / max(cost_high, 1e-9)) ** 1.5
        high = min(MAX_ROUNDS, max(2 * high, floor(high * growth)))
        cost_high = epsilon(mechanism, high)
    while high - low > 1:
        # By interpolation, but at least by a tenth: each step composes distributions anew.
        part = (budget - cost_low) / (cost_high - cost_low) if cost_high > cost_low else 0.5
        middle = low + floor((high - low) * min(0.9, max(0.1, part)))
        middle = min(high - 1, max(low + 1, middle))
        cost = epsilon(mechanism, middle)
        if cost <= budget:
            low, cost_low = middle, cost
        else:
            high, cost_high = middle, cost
    return low


def _interval(noise_multiplier: float, sampling: float, rounds: int) -> float:
    """Returns a width of the intervals with which they are not too many; wider ones only make epsilon larger."""
    # Bounds of the mean and the variance of the loss: by the second moment of the ratio of the probabilities, and since
    # divergences are convex, and the distribution is a mixture.
    square = noise_multiplier**-2
    moment = sampling**2 * expm1(min(square, 100.0))
    mean = min(sampling * square, moment) / 2
    deviation = sqrt(min(sampling * (square + square**2 / 4), moment))
    one = square / 2 + 10 * sqrt(square)
    all_rounds = one + rounds * mean + 15 * sqrt(rounds) * deviation
    wanted = max(one / MAX_INTERVALS, all_rounds / MAX_COMPOSED)
    # Powers of two: few distributions of a round have to be remembered.
    return INTERVAL * 2.0 ** max(0, ceil(log2(wanted / INTERVAL)))


@lru_cache(64)
def _round(noise_multiplier: float, sampling: float, interval: float) -> PrivacyLossDistribution:
    """Returns the distribution of the privacy loss of a round with Poisson sampling."""
    _load()
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        standard_deviation=noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling
    )


def _gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Returns the exact epsilon of the Gaussian mechanism, rounded up."""
    _load()
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

    loss = GaussianPrivacyLoss(noise_multiplier)
    if float(loss.get_delta_for_epsilon(0.0)) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while float(loss.get_delta_for_epsilon(high)) > delta:
        low, high = high, 2 * high
        if high > LARGEST_EPSILON:
            return inf
    for _ in range(60):
        middle = (low + high) / 2
        if float(loss.get_delta_for_epsilon(middle)) > delta:
            low = middle
        else:
            high = middle
    return high


def _load() -> None:
    try:
        import dp_accounting  # noqa: F401 - the package is there
    except ImportError as error:
        raise AccountingMissing(
            "differential privacy needs dp-accounting, which computes epsilon and is not installed on the server:"
            " pip install 'fedround[dp]'"
        ) from error
