"""Buffering: a version is made of the updates that arrive, whatever version they started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedround_server.aggregators.options import check_positive, check_range
from fedround_server.aggregators.rule import BaseStage
from fedround_server.domain.aggregation import OptionInvalid

MAX_SIZE = 100_000
MAX_STALENESS = 1000


@dataclass(frozen=True)
class FedBuff(BaseStage):
    """FedBuff (Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022).

    arXiv 2106.06639. The model takes the aggregate of the updates' differences from the versions that they started
    from, each multiplied by (1 + staleness)^-exponent.

    Attributes:
        size: How many updates make a version, >= 1.
        max_staleness: How many versions may have been made since the one that an update started from.
        exponent: How fast the influence of an update falls with its staleness, >= 0.
    """

    name = "fed_buff"
    replaces_model: ClassVar[bool] = False
    size: int = 10
    max_staleness: int = 10
    exponent: float = 0.5

    def check(self) -> None:
        """Checks the options."""
        check_range("size", self.size, 1, MAX_SIZE)
        check_range("max_staleness", self.max_staleness, 1, MAX_STALENESS)
        check_range("exponent", self.exponent, 0)

    def factor(self, staleness: int) -> float:
        """Returns (1 + staleness)^-exponent."""
        return float((1 + staleness) ** -self.exponent)


@dataclass(frozen=True)
class FedAsync(BaseStage):
    """FedAsync (Xie et al., Asynchronous Federated Optimization, 2019, arXiv 1903.03934), polynomial staleness.

    Each update makes a version: x := (1 - a) x + a w, where w is the update and a = alpha (1 + staleness)^-exponent.

    Attributes:
        size: 1.
        max_staleness: How many versions may have been made since the one that an update started from.
        exponent: How fast the influence of an update falls with its staleness, >= 0.
        alpha: How far the model moves towards an update without staleness, 0 < alpha <= 1.
    """

    name = "fed_async"
    replaces_model: ClassVar[bool] = True
    size: int = 1
    max_staleness: int = 10
    exponent: float = 0.5
    alpha: float = 0.6

    def check(self) -> None:
        """Checks the options."""
        if self.size != 1:
            raise OptionInvalid("size", f"is {self.size}; must be 1 with fed_async: each update makes a version")
        check_range("max_staleness", self.max_staleness, 1, MAX_STALENESS)
        check_range("exponent", self.exponent, 0)
        check_positive("alpha", self.alpha)
        check_range("alpha", self.alpha, 0, 1)

    def factor(self, staleness: int) -> float:
        """Returns alpha (1 + staleness)^-exponent."""
        return float(self.alpha * (1 + staleness) ** -self.exponent)
