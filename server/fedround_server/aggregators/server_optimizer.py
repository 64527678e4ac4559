"""Server optimizers: take the difference of the aggregate from the model for a gradient.

FedAvgM: Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019, arXiv 1909.06335. FedAdagrad,
FedAdam and FedYogi: Reddi et al., Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295, algorithm 2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedround_server.aggregators.options import check_positive, check_range
from fedround_server.aggregators.rule import BaseStage

if TYPE_CHECKING:
    from torch import Tensor


class ServerOptimizer(BaseStage):
    """An optimizer whose steps are made element by element.

    Attributes:
        slots: Names of what it remembers of each element, each as large as the model.
    """

    slots: ClassVar[tuple[str, ...]]

    def initial(self, slot: str) -> float:
        """Returns what a slot contains before the first step."""
        return 0.0

    @abstractmethod
    def step(self, delta: Tensor, state: Mapping[str, Tensor], number: int) -> Tensor:
        """Makes a step.

        Args:
            delta: The aggregate less the model: shape (elements,), float64.
            state: The slots, like that; overwritten with their new contents.
            number: Counts the steps, from 1.

        Returns:
            What is added to the model: shape (elements,), float64.
        """


@dataclass(frozen=True)
class Sgd(ServerOptimizer):
    """Gradient descent with momentum: FedAvgM.

    Attributes:
        learning_rate: > 0.
        momentum: In [0, 1).
    """

    name = "sgd"
    slots = ("v",)
    learning_rate: float = 1.0
    momentum: float = 0.0

    def check(self) -> None:
        """Checks the learning rate and the momentum."""
        check_positive("learning_rate", self.learning_rate)
        check_range("momentum", self.momentum, 0, 1, open_end=True)

    def step(self, delta: Tensor, state: Mapping[str, Tensor], number: int) -> Tensor:
        """Makes a step: v = momentum * v + delta; the model goes on by learning_rate * v."""
        return state["v"].mul_(self.momentum).add_(delta).mul(self.learning_rate)


@dataclass(frozen=True)
class Adagrad(ServerOptimizer):
    """FedAdagrad.

    Attributes:
        learning_rate: > 0.
        beta1: In [0, 1).
        tau: How adaptive it is, > 0: v begins as tau squared.
    """

    name = "adagrad"
    slots = ("m", "v")
    learning_rate: float = 0.1
    beta1: float = 0.0
    tau: float = 1e-9

    def check(self) -> None:
        """Checks the learning rate, beta1 and tau."""
        check_positive("learning_rate", self.learning_rate)
        check_range("beta1", self.beta1, 0, 1, open_end=True)
        check_positive("tau", self.tau)

    def initial(self, slot: str) -> float:
        """Returns tau squared for v, and 0 for m."""
        return self.tau * self.tau if slot == "v" else 0.0

    def step(self, delta: Tensor, state: Mapping[str, Tensor], number: int) -> Tensor:
        """Makes a step: m = beta1 m + (1 - beta1) delta; the model goes on by learning_rate m / (sqrt(v) + tau)."""
        mean, variance = state["m"], state["v"]
        mean.mul_(self.beta1).add_(delta * (1 - self.beta1))
        self._accumulate(variance, delta.square())
        first, second = self._corrections(number)
        return (mean / first).mul_(self.learning_rate).div_((variance / second).sqrt_().add_(self.tau))

    def _accumulate(self, variance: Tensor, square: Tensor) -> None:
        variance.add_(square)

    def _corrections(self, number: int) -> tuple[float, float]:
        return 1.0, 1.0


@dataclass(frozen=True)
class Adam(Adagrad):
    """FedAdam.

    Attributes:
        learning_rate: > 0.
        beta1: In [0, 1).
        beta2: In [0, 1).
        tau: How adaptive it is, > 0: v begins as tau squared.
        bias_correction: Whether m and v are divided by 1 - beta^step, as Adam has it (Kingma and Ba, ICLR 2015).
    """

    name = "adam"
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = False

    def check(self) -> None:
        """Checks the learning rate, the betas and tau."""
        super().check()
        check_range("beta2", self.beta2, 0, 1, open_end=True)

    def _accumulate(self, variance: Tensor, square: Tensor) -> None:
        variance.mul_(self.beta2).add_(square.mul_(1 - self.beta2))

    def _corrections(self, number: int) -> tuple[float, float]:
        if not self.bias_correction:
            return 1.0, 1.0
        return 1 - self.beta1**number, 1 - self.beta2**number


@dataclass(frozen=True)
class Yogi(Adam):
    """FedYogi, with the options of FedAdam."""

    name = "yogi"
    learning_rate: float = 0.01

    def _accumulate(self, variance: Tensor, square: Tensor) -> None:
        sign = (variance - square).sign_()
        variance.sub_(square.mul_(1 - self.beta2).mul_(sign))
