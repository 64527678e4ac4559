"""Methods that estimate the uncertainty of predictions; the engine has the algorithms under the same names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class NoUncertainty:
    """A single prediction."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, slots=True)
class MCDropout:
    """Monte Carlo dropout.

    Attributes:
        samples: Passes through the network.
        softmax: Whether the outputs are logits.
    """

    name: ClassVar[str] = "mc_dropout"
    samples: int
    softmax: bool = False


@dataclass(frozen=True, slots=True)
class Swag:
    """SWAG: samples from a Gaussian posterior that is made of moments of the participants' weights.

    Attributes:
        samples: Passes through the network.
        softmax: Whether the outputs are logits.
        every: Model versions between two collections of moments; 0 means only around the last version.
        rank: Deviations that each participant sends; 0 for a diagonal posterior.
    """

    name: ClassVar[str] = "swag"
    samples: int
    softmax: bool = False
    every: int = 0
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The predictions of several models.

    Attributes:
        members: Models to add, as (model_id, version); None means the latest version.
        last_versions: Latest versions of the model itself; 0 means the requested one alone.
        softmax: Whether the outputs are logits.
    """

    name: ClassVar[str] = "ensemble"
    members: tuple[tuple[str, int | None], ...] = ()
    last_versions: int = 0
    softmax: bool = False


Uncertainty: TypeAlias = NoUncertainty | MCDropout | Swag | Ensemble

METHODS: Mapping[str, type[Uncertainty]] = {
    method.name: method for method in (NoUncertainty, MCDropout, Swag, Ensemble)
}


def options_of(method: Uncertainty) -> dict[str, Any]:
    """Returns the options of a method by name."""
    return asdict(method)


def to_uncertainty(name: str, options: Mapping[str, Any]) -> Uncertainty:
    """Returns the method with a name and options, as read from JSON.

    Raises:
        KeyError: There is no such method.
    """
    values = dict(options)
    if "members" in values:
        values["members"] = tuple((model_id, version) for model_id, version in values["members"])
    return METHODS[name](**values)
