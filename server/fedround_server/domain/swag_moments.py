"""What participants send in a SWAG round: moments of their weights (Maddox et al., NeurIPS 2019).

Each tensor NAME of the model that has real floating-point numbers is described by mean/NAME and second/NAME, the
running means of the weights and of their squares over the round's training, and by deviation/K/NAME, the last
deviations from the mean. Moments are float64: the variance is the small difference of two large numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedround_server.domain.model import Dtype, Manifest, TensorSpec

MEAN, SECOND, DEVIATION = "mean", "second", "deviation"
MAX_RANK = 20


@dataclass(frozen=True, slots=True)
class SwagMoments:
    """The aggregation of moments into a posterior, which has no state."""

    slots: ClassVar[tuple[str, ...]] = ()


def moments(model: Manifest, rank: int) -> Manifest:
    """Returns the tensors that a participant sends, with `rank` deviations; none for a model without floating ones."""
    real = {name: spec.shape for name, spec in model.items() if spec.dtype.is_floating and not spec.dtype.is_complex}
    found: dict[str, TensorSpec] = {}
    for name, shape in real.items():
        found[f"{MEAN}/{name}"] = TensorSpec(Dtype.F64, shape)
        found[f"{SECOND}/{name}"] = TensorSpec(Dtype.F64, shape)
        for column in range(rank):
            found[f"{DEVIATION}/{column}/{name}"] = TensorSpec(Dtype.F32, shape)
    return found


def columns(names: Iterable[str]) -> int:
    """Returns how many deviations a file with tensors of these names has."""
    return 1 + max((int(name.split("/")[1]) for name in names if name.startswith(f"{DEVIATION}/")), default=-1)
