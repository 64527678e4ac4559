"""Whether a file has the tensors that it must have."""

from fedround_server.domain.errors import UpdateMismatch
from fedround_server.domain.model import Manifest


def check_same(actual: Manifest, expected: Manifest, differences: Manifest | None = None) -> None:
    """Checks that an update has the tensors that its round asks for.

    Args:
        actual: The update's tensors.
        expected: What it must have.
        differences: What it may have instead; errors refer to this if the update has one of the differences.

    Raises:
        UpdateMismatch: A tensor is missing, is one too many, or has another type or shape.
    """
    if actual in (expected, differences):
        return
    hint = ""
    if differences is not None and any(_is_difference(name, actual, expected, differences) for name in actual):
        expected, hint = differences, ": differences of all F32 and F64 tensors, or of none"
    if missing := sorted(expected.keys() - actual.keys()):
        raise UpdateMismatch(f"the update lacks tensors that the round asks for: {_some(missing)}")
    if surplus := sorted(actual.keys() - expected.keys()):
        raise UpdateMismatch(f"the update has tensors that the round does not ask for: {_some(surplus)}")
    for name, spec in expected.items():
        found = actual[name]
        if found != spec:
            raise UpdateMismatch(
                f"tensor {name!r} is {found.dtype.name}{list(found.shape)},"
                f" and the round asks for {spec.dtype.name}{list(spec.shape)}{hint}"
            )


def _is_difference(name: str, actual: Manifest, expected: Manifest, differences: Manifest) -> bool:
    spec = differences.get(name)
    return spec is not None and spec != expected[name] and spec.dtype is actual[name].dtype


def _some(names: list[str]) -> str:
    return ", ".join(repr(name[:80]) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
