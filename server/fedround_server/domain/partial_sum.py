"""Partial sums: exact sums of many updates, which a relay sends to its parent as one update.

A floating tensor of shape [...] is a tensor of shape [..., components] in F64. The components of an element are float64
numbers whose exact sum is sum(num_examples * update): each is at most half a unit in the last place of the one before.
The real and the imaginary part of a complex element have components of their own. Counters have their maximum.
"""

from collections.abc import Mapping

from fedround_server.domain.aggregation import is_counter
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import MAX_RANK, Dtype, Manifest, TensorSpec

COMPONENTS = (2, 4, 8)
"""How many components elements may have: all those of a file have the same number, the smallest that is enough."""
MAX_NUM_EXAMPLES = 2**53
"""The largest sum of example counts: up to it, all integers are exact in float64."""

NUM_EXAMPLES, NUM_UPDATES = "num_examples", "num_updates"
"""The metadata of the file: the sum of the example counts, and how many updates were added."""


def sum_tensors(tensors: Manifest, components: int) -> Manifest:
    """Returns the tensors of a partial sum of updates with some tensors."""
    return {
        name: TensorSpec(Dtype.F64, (*_numbers(spec), components)) if spec.dtype.is_floating else spec
        for name, spec in tensors.items()
    }


def components_of(actual: Manifest, tensors: Manifest) -> int:
    """Returns how many components the elements of a file have; 0 if it is no partial sum of updates with some tensors.

    The first floating tensor decides; whether the others fit is for `sum_tensors`.
    """
    for name, spec in tensors.items():
        if spec.dtype.is_floating:
            found = actual.get(name)
            fits = found is not None and found.dtype is Dtype.F64 and found.shape[:-1] == _numbers(spec)
            return found.shape[-1] if found is not None and fits and found.shape[-1:] in _LAST else 0
    return 0


def check_num_updates(num_updates: int, metadata: Mapping[str, str]) -> None:
    """Checks that the metadata of a file names the number of updates in it, which relays of relays add up.

    Raises:
        FieldInvalid: It names another one, or none.
    """
    found = metadata.get(NUM_UPDATES, "")
    if found != str(num_updates):
        raise FieldInvalid(
            "spec.num_updates", f"is {num_updates}; {NUM_UPDATES} in the metadata of the file is {found[:40]!r}"
        )


_LAST = tuple((count,) for count in COMPONENTS)


def check_tensors(field: str, tensors: Manifest) -> None:
    """Checks that updates with some tensors have partial sums.

    Args:
        field: What asks for partial sums, for errors.
        tensors: The tensors that updates have.

    Raises:
        FieldInvalid: They have none.
    """
    for name, spec in tensors.items():
        if not spec.dtype.is_floating and not is_counter(name):
            raise FieldInvalid(
                field,
                f"needs updates of floating-point tensors, and tensor {name!r} is {spec.dtype.name}: integers and"
                " booleans are taken from single updates, or rounded means of them, which no sum of some of the updates"
                " tells. Leave it out with spec.tensors.trainable",
            )
        if len(_numbers(spec)) >= MAX_RANK:
            raise FieldInvalid(
                field, f"needs tensors of fewer dimensions than {MAX_RANK}, and {name!r} has {len(spec.shape)}"
            )


def _numbers(spec: TensorSpec) -> tuple[int, ...]:
    """Returns the shape of the real numbers of a tensor."""
    return (*spec.shape, 2) if spec.dtype.is_complex else spec.shape
