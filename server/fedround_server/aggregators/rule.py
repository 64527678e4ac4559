"""What rules of aggregation are, and what they see.

The files of this package contain the options of each stage and what it computes. The server's process reads and checks
the options; only an engine's processes compute. So no module of the package loads torch when it is imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedround_server.domain.adapters import NO_ADAPTERS, Adapters

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fedround_server.domain.model import Manifest
    from fedround_server.domain.tensor_selection import TensorSelection

    Matrix = np.ndarray[Any, np.dtype[np.float64]]


class NoAggregate(ValueError):
    """The updates of a round have no aggregate under a rule; the message says why."""


@dataclass(frozen=True, slots=True)
class Updates:
    """The updates of a round, ordered by the digests of their files.

    Attributes:
        user_ids: Whose they are; empty if they were mixed.
        weights: num_examples of each, >= 1; all 1 if they were mixed.
        products: Inner products of their differences from the round's model: shape (updates, updates), float64. Empty
            if they are not needed.
        kept_products: Inner products of the differences with the kept aggregate, and of that with itself: shape
            (updates + 1,), float64. Zeros if there is none.
        steps: Local steps of each; empty if they were not asked for.
        losses: Loss of the round's model at each participant; empty if it was not asked for.
        digest: Names the set of updates; a seed of what is drawn.
    """

    user_ids: tuple[str, ...]
    weights: tuple[int, ...]
    products: Matrix
    kept_products: Matrix
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    digest: str = ""

    def __len__(self) -> int:
        """Returns the number of updates."""
        return len(self.weights)

    def distances(self) -> Matrix:
        """Returns the squared distances between the updates: shape (updates, updates), float64."""
        squares = self.products.diagonal()
        distances = squares[:, None] + squares[None, :] - 2 * self.products
        distances[range(len(squares)), range(len(squares))] = 0
        return distances.clip(min=0)

    def scaled(self, scales: Sequence[float]) -> Updates:
        """Returns the updates with their differences from the model multiplied by a number each."""
        products = self.products * [[one * other for other in scales] for one in scales]
        return replace(self, products=products, kept_products=self.kept_products * [*scales, 1.0])

    def mixed(self, matrix: Matrix) -> Updates:
        """Returns what linear combinations of the differences make.

        Args:
            matrix: Their coefficients: shape (combinations, updates), float64.
        """
        import numpy as np

        kept = np.append(matrix @ self.kept_products[:-1], self.kept_products[-1])
        products = matrix @ self.products @ matrix.T
        # Of a symmetric matrix, again, which rounding errors are not: so ties are ties.
        return Updates((), (1,) * len(matrix), (products + products.T) / 2, kept)


@dataclass(frozen=True, slots=True)
class Shares:
    """A linear combination of updates u around the round's model x: x + sum(coefficients * (u - x)) / divisor.

    Attributes:
        coefficients: One for each update, finite.
        divisor: Not zero. If it is the sum of the coefficients, the combination is a weighted mean.
        kept: The coefficient of the kept aggregate, which is added.
    """

    coefficients: Sequence[float]
    divisor: float = 1.0
    kept: float = 0.0


def distances_to(point: Matrix, products: Matrix) -> Matrix:
    """Returns the distances of vectors to a linear combination of them: shape (vectors,), float64.

    Args:
        point: The coefficients of the combination: shape (vectors,), float64.
        products: Inner products of the vectors: shape (vectors, vectors), float64.
    """
    import numpy as np

    squares = point @ products @ point - 2 * (products @ point) + products.diagonal()
    distances: Matrix = np.sqrt(squares.clip(min=0))
    return distances


class BaseStage(ABC):
    """A stage of an aggregation; its options are the fields of a dataclass.

    Attributes:
        name: Its name in the protos and in the database.
    """

    name: ClassVar[str]

    def check(self) -> None:
        """Checks the options.

        Raises:
            OptionInvalid: One has a value that it cannot have.
        """
        return


class BaseRule(BaseStage):
    """A rule.

    Attributes:
        needs_products: Whether it sees the inner products of the updates, which takes another pass over them.
        needs_steps: Whether participants have to report their local steps.
        needs_loss: Whether participants have to report the loss of the model that they started from.
        keeps_aggregate: Whether it sees the difference that the round before has made.
        selects: Whether it leaves some updates out.
        slots, control, takes_optimizer, nests: As `Rule` has them; see `StatefulRule`.
    """

    selects: ClassVar[bool] = False
    needs_products: ClassVar[bool] = False
    needs_steps: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False
    keeps_aggregate: ClassVar[bool] = False
    slots: ClassVar[tuple[str, ...]] = ()
    control: ClassVar[str | None] = None
    takes_optimizer: ClassVar[bool] = True
    nests: ClassVar[bool] = False

    def min_updates(self) -> int:
        """Returns how many updates the rule needs."""
        return 1

    def required_users(self) -> tuple[str, ...]:
        """Returns whose updates the rule needs in each round."""
        return ()

    def for_participants(self) -> BaseRule:
        """Returns the rule as participants see it: without the ids of others."""
        return self

    def check_model(self, model: Manifest, tensors: TensorSelection) -> None:
        """Checks that a model fits the rule; any does."""
        return

    def adapters(self, model: Manifest, trained: Manifest) -> Adapters:
        """Returns what the rule does with the adapters of a model: nothing that it does not do with all tensors."""
        return NO_ADAPTERS


class LinearRule(BaseRule):
    """A rule whose result is a linear combination of the updates; it is correctly rounded."""

    @abstractmethod
    def shares(self, updates: Updates) -> Shares:
        """Returns the linear combination."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step of a rule with state knows of its round.

    Attributes:
        count: How many updates take part, >= 1.
        population: How many participants could have been asked for one, >= count.
        control: The sum of the changes of the participants' control variates: shape (elements,), float64; zeros unless
            the rule has a control variate.
    """

    count: int
    population: int
    control: Tensor


class StatefulRule(LinearRule):
    """A linear rule that remembers something of each element, and makes a step with it, element by element.

    Attributes:
        slots: Names of what it remembers, each as large as the model; zeros before the first step.
    """

    @abstractmethod
    def step(self, delta: Tensor, state: Mapping[str, Tensor], context: StepContext) -> Tensor | None:
        """Makes a step.

        Args:
            delta: The linear combination less the model: shape (elements,), float64; not to be written to.
            state: The slots, like that; overwritten with their new contents.
            context: What is known of the round.

        Returns:
            What is added to the model: shape (elements,), float64, which the caller rounds. None for `delta`: then the
            model is the linear combination, correctly rounded.
        """


class ColumnRule(BaseRule):
    """A rule that sees all values of an element at once."""

    def chosen(self, updates: Updates) -> Sequence[int]:
        """Returns the indices of the updates that take part."""
        return range(len(updates.weights))

    @abstractmethod
    def reduce(self, values: Tensor) -> Tensor:
        """Aggregates the values of each element.

        Args:
            values: Shape (updates, elements), in a floating dtype. May be written to.

        Returns:
            Shape (elements,), float64; the caller rounds it to the model's dtype.
        """
