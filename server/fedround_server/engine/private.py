"""The sum of clipped updates with noise, over a number that does not depend on who answered: differential privacy."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from fedround_server.aggregators.clipping import AdaptiveClipping, Clipping
from fedround_server.aggregators.differential_privacy import count_noise, multiplier_of_updates
from fedround_server.aggregators.rule import NoAggregate, Shares, Updates
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.privacy import Privacy
from fedround_server.engine.decision import FAR
from fedround_server.engine.format.dtypes import narrow, widen
from fedround_server.engine.noise import FreshNoise, Noise, TreeNoise, noisy
from fedround_server.engine.parts import Block


@dataclass(frozen=True, slots=True)
class Private:
    """The aggregate is the model plus (sum(coefficients * (update - model)) + noise) / divisor.

    Attributes:
        shares: The coefficients and the divisor.
        scales: What clipping multiplies the differences by.
        noise: The noise of the sum.
    """

    shares: Shares
    scales: Sequence[float]
    noise: Noise

    def aggregate(self, block: Block) -> Tensor:
        """Returns the aggregate: shape (elements,), in the model's dtype."""
        return narrow(self.difference(block, None).add_(widen(block.model)), block.stored.dtype)

    def difference(self, block: Block, kept: Tensor | None) -> Tensor:
        """Returns the aggregate less the model: shape (elements,), float64."""
        model = widen(block.model).double()
        total = torch.zeros_like(model)
        for update, coefficient in zip(block.updates(), self.shares.coefficients, strict=True):
            if coefficient:
                total.add_((widen(update).double() - model).mul_(coefficient))
        return self.noise.add(total, block.place).div_(self.shares.divisor)


def decide_privately(
    aggregation: Aggregation, updates: Updates, norm: float, expected: float, tree: tuple[bytes, int] | None
) -> Private:
    """Decides how the updates of a round are aggregated with differential privacy.

    Args:
        aggregation: Its stages.
        updates: The updates, with their inner products; there may be none.
        norm: To which clipping scales them.
        expected: How many updates a round has on average.
        tree: The secret of the trees, and how many steps they have; None without.

    Raises:
        NoAggregate: The noise that clipping adds leaves no privacy for the updates.
    """
    clipping, privacy = aggregation.clipping, aggregation.differential_privacy
    if privacy is None or not isinstance(clipping, Clipping) or not expected > 0:
        raise TypeError("an aggregation without privacy, without clipping or without participants was to be private")
    scales = clipping.scales(updates.products, norm)
    is_near = (updates.products.diagonal() < FAR**2).tolist()
    coefficients = [
        privacy.weight(weight) * scale if near else 0.0
        for weight, scale, near in zip(updates.weights, scales, is_near, strict=True)
    ]
    multiplier = privacy.noise_multiplier
    if isinstance(clipping, AdaptiveClipping):
        multiplier = multiplier_of_updates(multiplier, count_noise(multiplier, clipping.noise_std, expected))
        if not isfinite(multiplier):
            raise NoAggregate("the noise of adaptive clipping is too small for this noise_multiplier")
    std = multiplier * norm
    noise: Noise = FreshNoise(std) if tree is None else TreeNoise(std, tree[1] + 1, tree[0])
    return Private(Shares(coefficients, expected), scales, noise)


def next_norm(
    clipping: AdaptiveClipping, privacy: Privacy | None, scales: Sequence[float], norm: float, expected: float
) -> float:
    """Returns the norm of adaptive clipping for the next round.

    With privacy, updates within the norm count 1/2 and others -1/2, so that each participant changes the sum by 1/2
    (Andrew et al., section 3.1).

    Args:
        clipping: The options.
        privacy: The privacy of the aggregation, if it has any.
        scales: What clipping has multiplied the differences by.
        norm: The norm of this round.
        expected: How many updates a round has on average.
    """
    within = sum(scale == 1 for scale in scales)
    if privacy is None:
        return clipping.next_norm(norm, noisy(within, clipping.noise_std or 0.0) / len(scales))
    std = count_noise(privacy.noise_multiplier, clipping.noise_std, expected)
    return clipping.next_norm(norm, noisy(within - len(scales) / 2, std) / expected + 0.5)
