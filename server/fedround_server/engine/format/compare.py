"""Whether a file has the tensors that it must have."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from fedround_server.domain.errors import TensorsMismatch, UpdateMismatch
from fedround_server.domain.model import Manifest, TensorSpec
from fedround_server.domain.tensor_selection import some
from fedround_server.domain.transport import SCALES, WIDE

MAX_PREFIX = 80
"""Characters of a prefix that is named in an error."""


def check_same(
    actual: Manifest,
    expected: Manifest,
    differences: Manifest | None = None,
    private: Collection[str] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Checks that an update has the tensors that its round asks for.

    Args:
        actual: The update's tensors.
        expected: What it must have.
        differences: What it may have instead; errors refer to this if the update has one of the differences.
        private: Tensors that its participant must keep to itself.
        notes: What else errors say about shapes, by tensor.

    Raises:
        TensorsMismatch: A tensor is missing, or is one too many.
        UpdateMismatch: A tensor has another type or shape.
    """
    if actual in (expected, differences):
        return
    asked, hint = expected, ""
    if differences is not None and any(_is_difference(name, actual, expected, differences) for name in actual):
        asked, hint = differences, f": {_describe_choice(expected, differences)}"
    missing, surplus = sorted(asked.keys() - actual.keys()), sorted(actual.keys() - asked.keys())
    if missing or surplus:
        raise TensorsMismatch(_describe_names(missing, surplus, private))
    for name, spec in asked.items():
        if actual[name] != spec:
            other = None if differences is None or asked is differences else differences[name]
            choice = "" if other in (None, spec) else f", or {_text(other)} as a difference"
            hint += notes.get(name, "")
            raise UpdateMismatch(
                f"tensor {name!r} is {_text(actual[name])}, and the round asks for {_text(spec)}{choice}{hint}"
            )


def _is_difference(name: str, actual: Manifest, expected: Manifest, differences: Manifest) -> bool:
    spec = differences.get(name)
    return spec is not None and spec != expected.get(name) and spec.dtype is actual[name].dtype


def _describe_choice(expected: Manifest, differences: Manifest) -> str:
    if all(differences[name] != spec for name, spec in expected.items() if spec.dtype in WIDE):
        return "differences of all F32 and F64 tensors, or of none"
    return "differences of the tensors that spec.update_precision and spec.tensor_precisions select, or of none"


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype.name}{list(spec.shape)}"


def _describe_names(missing: list[str], surplus: list[str], private: Collection[str]) -> str:
    """Returns which tensors are missing and which are surplus, and what explains it, if anything does."""
    if sent := [name for name in surplus if name in private]:
        return (
            f"the update has tensors that are private to each participant (spec.tensors.private): {some(sent)}: leave"
            " them out, as participate of the SDK does; nothing of the file was taken"
        )
    lacks = f"lacks tensors that the round asks for: {some(missing)}"
    has = f"has tensors that the round does not ask for: {some(surplus)}"
    text = f"the update {'; and it '.join(([lacks] if missing else []) + ([has] if surplus else []))}"
    if prefix := _prefix(missing, surplus):
        text += (
            f". The names of the update begin with {prefix!r}, those of the model do not: remove it with"
            f" fedround_client.strip_prefix(state_dict, {prefix!r})"
        )
    elif prefix := _prefix(surplus, missing):
        text += (
            f". The names of the model begin with {prefix!r}, those of the update do not: create the training from"
            f" fedround_client.strip_prefix(state_dict, {prefix!r}), or add the prefix to the update"
        )
    elif any(name.endswith(SCALES) for name in (*missing, *surplus)):
        text += (
            ". A tensor of int8 differences has its scales, one for each block, in an F32 tensor of its name and"
            f" {SCALES!r}; other tensors have none"
        )
    elif not surplus:
        text += (
            ". An update has all tensors of the model, or those that spec.tensors.trainable of the training selects: to"
            " train a part of the model, create the training with trainable=[...] (--trainable)"
        )
    return text


def _prefix(plain: list[str], prefixed: list[str]) -> str:
    """Returns what stands before each of some names, compared with others; empty if there is no such prefix."""
    if not plain or len(plain) != len(prefixed) or not prefixed[0].endswith(plain[0]):
        return ""
    # A common prefix keeps the order.
    prefix = prefixed[0].removesuffix(plain[0])
    return prefix if len(prefix) <= MAX_PREFIX and prefixed == [prefix + name for name in plain] else ""
