"""Differential privacy of trainings: what is promised, and what of it is spent."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fedround_server.domain.cohort import Cohort

PRIVACY_BUDGET = "PRIVACY_BUDGET"
"""Why a training ended whose budget allows no further round."""
MAX_ROUNDS = 1 << 20
"""A budget that allows more rounds than this is no limit."""


class Privacy:
    """The options of central differential privacy of participants.

    Attributes:
        noise_multiplier: Standard deviation of the noise of the sum of the updates, in multiples of the clipping norm.
        delta: Probability with which the bound of epsilon need not hold.
        epsilon_budget: The largest epsilon; 0 means no limit.
        tree: Whether the noise is that of tree aggregation.
        example_cap: The number of examples from which on an update has the weight 1; 0 if all have it.
    """

    name: ClassVar[str]
    noise_multiplier: float
    delta: float
    epsilon_budget: float
    tree: bool
    example_cap: int

    @abstractmethod
    def check(self) -> None:
        """Checks the options, as stages of aggregations do."""

    def weight(self, num_examples: int) -> float:
        """Returns what the update of a participant counts, at most 1.

        Args:
            num_examples: Its number of examples, >= 1.
        """
        return min(num_examples, self.example_cap) / self.example_cap if self.example_cap else 1.0

    @property
    def key_slot(self) -> str | None:
        """The name of the file with the secret of the trees; None without."""
        return "tree/key" if self.tree else None


@dataclass(frozen=True, slots=True)
class Mechanism:
    """What is done with the data of the participants in each round, for accounting.

    Attributes:
        noise_multiplier: Standard deviation of the noise, in multiples of what a participant can change.
        delta: Probability with which the bound of epsilon need not hold.
        sampling: The probability with which each participant is asked; 1 for everybody.
        tree: Whether the noise is that of tree aggregation.
    """

    noise_multiplier: float
    delta: float
    sampling: float = 1.0
    tree: bool = False


def mechanism_of(privacy: Privacy, cohort: Cohort | None) -> Mechanism:
    """Returns what is to be accounted for a training.

    Sampling counts only where each participant is drawn independently of the others, which it is not with trees.
    """
    sampling = 1.0 if privacy.tree or cohort is None else cohort.fraction or 1.0
    return Mechanism(privacy.noise_multiplier, privacy.delta, sampling, privacy.tree)


@dataclass(frozen=True, slots=True)
class PrivacyAccount:
    """What the database has of how much a training has spent.

    Attributes:
        rounds: How many rounds were charged.
        rounds_allowed: How many the budget allows; None without a budget.
    """

    rounds: int
    rounds_allowed: int | None

    @property
    def rounds_left(self) -> int | None:
        """How many more rounds the budget allows; None without a budget."""
        return None if self.rounds_allowed is None else max(0, self.rounds_allowed - self.rounds)


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """How much privacy a training has spent.

    Attributes:
        epsilon: Of the rounds that were opened so far.
        next_epsilon: What it would be after another round.
        delta: Probability with which the bound need not hold.
        rounds: How many rounds were charged.
        rounds_left: How many more the budget allows; None without a budget.
    """

    epsilon: float
    next_epsilon: float
    delta: float
    rounds: int
    rounds_left: int | None
