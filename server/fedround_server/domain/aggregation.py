"""Rules of aggregation with their options; the engine has the algorithms under the same names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The average, weighted by the number of examples."""

    name: ClassVar[str] = "fed_avg"


@dataclass(frozen=True, slots=True)
class FedProx:
    """FedAvg; the clients add a proximal term of the weight mu (>= 0) to their loss."""

    name: ClassVar[str] = "fed_prox"
    mu: float = 0.0


@dataclass(frozen=True, slots=True)
class FedDC:
    """FedAvg after several rounds in which local models change hands (daisy chaining).

    Attributes:
        daisy_period: Local rounds before the models change hands, >= 1.
        aggregation_period: Local rounds before they are averaged; a multiple of daisy_period.
        seed: Makes the assignments reproducible.
    """

    name: ClassVar[str] = "fed_dc"
    daisy_period: int = 1
    aggregation_period: int = 10
    seed: int = 0


Aggregation: TypeAlias = FedAvg | FedProx | FedDC

AGGREGATIONS: Mapping[str, type[Aggregation]] = {rule.name: rule for rule in (FedAvg, FedProx, FedDC)}


def options_of(rule: Aggregation) -> dict[str, Any]:
    """Returns the options of a rule by name."""
    return asdict(rule)


def to_aggregation(name: str, options: Mapping[str, Any]) -> Aggregation:
    """Returns the rule with a name and options.

    Raises:
        KeyError: There is no such rule.
    """
    return AGGREGATIONS[name](**options)
